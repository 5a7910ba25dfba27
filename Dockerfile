# A node in a container:  docker build -t shoal .
# What is installed, the locks say: torch, where no NVIDIA card is seen, is its build without CUDA.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS build
# A compiler for the kernels; Debian keeps its version still.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# Who runs the image may not write beside the modules: they are compiled now.
ENV UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1
WORKDIR /source
COPY scripts ./scripts
COPY locks ./locks
RUN python -m venv /opt/build \
    && python -m venv /opt/shoal \
    && scripts/sync.sh /opt/build build \
    && UV=/opt/build/bin/uv scripts/sync.sh /opt/shoal runtime torch postgres
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY page ./page
COPY src ./src
RUN /opt/build/bin/uv build --wheel --python /opt/build/bin/python --no-build-isolation --out-dir /dist \
    && /opt/build/bin/uv pip install --python /opt/shoal/bin/python --no-deps /dist/*.whl

FROM python:${PYTHON}
RUN useradd --uid 10001 --create-home shoal \
    && install -d -o shoal -g shoal -m 0700 /data
COPY --from=build /opt/shoal /opt/shoal
# Identity, swarms, models and config.toml lie in /data. The ports are fixed, so that they can be published.
ENV PATH=/opt/shoal/bin:$PATH \
    SHOAL_HOME=/data \
    SHOAL_PORT=4001 \
    SHOAL_DIRECT_PORT=4002
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 4001 4002
# Ends like Ctrl-C does: open sessions first.
STOPSIGNAL SIGTERM
ENTRYPOINT ["shoal"]
CMD ["up"]
