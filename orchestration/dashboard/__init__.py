"""`echo-lm serve`: the runs, studies and nodes of a folder as a web page. It reads files and writes none."""
