"""The version of Chamfer; the build reads it without importing anything."""

VERSION = "0.1.0"
