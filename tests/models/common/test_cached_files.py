"""What of a folder is read: files that lie in it with all links followed."""

from echo_lm.models.common.cached_files import is_inside


def test_a_file_lies_in_a_folder_with_all_links_followed(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "sub").mkdir(parents=True)
    other.mkdir()
    (other / "secret").write_text("secret")
    (run / "file").write_text("own")
    (run / "out").symlink_to(other / "secret")
    (run / "within").symlink_to(run / "file")
    (run / "folder").symlink_to(other)
    (tmp_path / "link").symlink_to(run)
    assert is_inside(run / "file", run)
    assert is_inside(f"{run}/sub", str(run))
    assert is_inside(run / "within", run)
    assert is_inside(run / "missing", run)
    assert is_inside(tmp_path / "link/file", run)
    assert is_inside(tmp_path / "link/file", tmp_path / "link")
    for outside in ("out", "folder", "folder/secret", "..", "../other/secret", "sub/../../other/secret", ""):
        assert not is_inside(f"{run}/{outside}", run), outside
