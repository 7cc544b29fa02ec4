# What the original image does: make the cluster in an empty folder, run the given scripts once, serve.
set -eu
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
install --directory --mode=700 --owner=postgres --group=postgres "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    install --owner=postgres --mode=600 /dev/null /tmp/password
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    as_postgres initdb --auth=scram-sha-256 --username="$POSTGRES_USER" --pwfile=/tmp/password
    rm /tmp/password
    export PGUSER="$POSTGRES_USER" PGPASSWORD="$POSTGRES_PASSWORD"
    # reached through a socket alone until everything is there
    as_postgres pg_ctl start --wait --options "-c listen_addresses=''"
    createdb "$POSTGRES_USER"
    for script in /docker-entrypoint-initdb.d/*.sql; do
        psql --dbname="$POSTGRES_USER" --set=ON_ERROR_STOP=1 --file="$script"
    done
    as_postgres pg_ctl stop --wait
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -c "listen_addresses=*"
