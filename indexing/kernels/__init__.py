"""Numerical functions of arrays; they use no files, logs, clocks, threads or sockets."""
