# A node in a container:  docker build -t shoal .
# No CUDA: on Linux PyPI's torch brings gigabytes of it, so torch comes from its own CPU index.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS build
# A compiler for the kernels and for fastecdsa, which libp2p needs; Debian keeps their versions still.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgmp-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY page ./page
COPY src ./src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu .

FROM python:${PYTHON}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgmp10 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home shoal \
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
