"""Planning, fitting and plotting of scaling studies (pure code)."""
