"""Functions of arrays. They use no files, logs, clocks, threads or sockets."""
