"""Functions of arrays. They know no files, logs, clocks, threads or sockets."""
