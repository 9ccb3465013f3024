"""Runs a network on a device through torch, OpenVINO or ONNX Runtime; `backend.py` is the entrance."""
