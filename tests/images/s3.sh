# Takes the arguments that docker-compose.yaml gives versitygw: --port ADDRESS posix FOLDER
set -eu
mkdir -p "$4"
exec rclone serve s3 --addr "$2" --auth-key "$ROOT_ACCESS_KEY,$ROOT_SECRET_KEY" "$4"
