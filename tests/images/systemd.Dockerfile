# A machine as infra/systemd/ expects it, but for the project in /srv/firstkd.
FROM localhost/firstkd:cpu
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends systemd \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --mode=700 /etc/firstkd
COPY infra/systemd/*.service /etc/systemd/system/
STOPSIGNAL SIGRTMIN+3
CMD ["/lib/systemd/systemd"]
