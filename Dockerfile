# syntax=docker/dockerfile:1
# Two targets: `docker build --target cpu .` (default) and `docker build --target gpu .`
# On Linux the default package index serves torch with CUDA. For a small CPU image, name the CPU wheel index of PyTorch:
#   docker build --target cpu --build-arg PIP_EXTRA_INDEX_URL=<the CPU index that pytorch.org names> .

FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
# gcc compiles the C loops of indexing/kernels; without a compiler, slower compiled Python replaces them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/chamfer
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
# src/chamfer links to the three folders by relative paths, so all four are copied side by side.
COPY src ./src
COPY models ./models
COPY indexing ./indexing
COPY service ./service

FROM build AS build-cpu
RUN /opt/chamfer/bin/pip install --constraint constraints.txt torch \
    && /opt/chamfer/bin/pip install --constraint constraints.txt ".[cpu]"

FROM build AS build-gpu
RUN /opt/chamfer/bin/pip install --constraint constraints.txt torch \
    && /opt/chamfer/bin/pip install --constraint constraints.txt ".[gpu]"

FROM python:3.11-slim AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 chamfer \
    && mkdir -p /data \
    && chown chamfer:chamfer /data
ENV PATH=/opt/chamfer/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 NUMBA_CACHE_DIR=/home/chamfer/.cache/numba \
    CHAMFER_SERVICE__HOST=0.0.0.0 CHAMFER_SERVICE__PORT=8000
WORKDIR /home/chamfer
EXPOSE 8000
VOLUME /data
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["chamfer", "health", "--port", "8000"]
ENTRYPOINT ["chamfer"]
CMD ["demo", "--dir", "/home/chamfer/demo"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/chamfer /opt/chamfer
USER chamfer
RUN chamfer demo --dir /home/chamfer/demo --build-only

# The last stage is the default target: a build without --target gives the CPU image.
FROM runtime AS cpu
COPY --from=build-cpu /opt/chamfer /opt/chamfer
USER chamfer
RUN chamfer demo --dir /home/chamfer/demo --build-only
