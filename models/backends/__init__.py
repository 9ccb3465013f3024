"""Runs a network on a device: torch, OpenVINO, ONNX Runtime."""
