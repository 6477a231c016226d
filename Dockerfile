# The proxy in a small image: docker build -t budget-proxy .
#
#   docker run -p 127.0.0.1:8080:8080 -e OPENAI_API_KEY -e BUDGET_PROXY_KEY \
#     -v ./policy.yaml:/etc/budget-proxy/policy.yaml:ro -v budget-proxy:/var/lib/budget-proxy \
#     budget-proxy
#
# In a container the policy has to say `listen: 0.0.0.0:8080`; loopback is the container's own.

# -- build: everything that only installing needs stays behind in this stage ----------------------
FROM python:3.13-slim AS build
WORKDIR /src
# Only what the wheel is made of: a change of the tests does not build it anew.
COPY pyproject.toml README.md LICENSE ./
COPY budget_proxy ./budget_proxy
COPY policies ./policies
# A wheel first, then the wheel: the image gets what `pip install budget-proxy` gets, no more.
RUN python -m pip wheel --no-deps --wheel-dir /src/dist .
# A virtual environment is one folder, which the next stage copies whole, at the same place: its
# scripts name it. The extras: a faster event loop, and ledgers in PostgreSQL.
RUN python -m venv /opt/venv
RUN /opt/venv/bin/pip install --quiet "$(echo /src/dist/*.whl)[speed,postgres]"
# pip itself is of no use to a proxy, and of some to an intruder.
RUN /opt/venv/bin/pip uninstall --yes --quiet pip

# -- run ------------------------------------------------------------------------------------------
FROM python:3.13-slim
# A number, so that Kubernetes' runAsNonRoot can tell; no shell, no password.
RUN useradd --system --uid 10001 --user-group --no-log-init --shell /usr/sbin/nologin \
    --home-dir /var/lib/budget-proxy --create-home budget-proxy
COPY --from=build /opt/venv /opt/venv
# The call log goes to stdout line by line; .pyc files were written at installation.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# `ledger: sqlite:///budget-proxy.db` is relative: it lands in the volume. Without the volume,
# what was spent is forgotten with the container. Never put it on a network file system.
WORKDIR /var/lib/budget-proxy
VOLUME /var/lib/budget-proxy
USER 10001:10001
# 8080: services. 9090: metrics, health, /api; publish it to Prometheus only.
EXPOSE 8080 9090
# /livez, not /readyz: a draining proxy is still well. (slim images have no curl.) A policy with
# another admin port needs another check: docker run --health-cmd ...
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:9090/livez', timeout=2)"]
# SIGTERM lets calls finish for the policy's `grace` (30 s): stop with docker stop --time 40.
STOPSIGNAL SIGTERM
ENTRYPOINT ["budget-proxy"]
CMD ["serve", "/etc/budget-proxy/policy.yaml"]
