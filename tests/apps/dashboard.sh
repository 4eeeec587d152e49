# The dashboard in headless Chromium, on a cluster of its own: three voters and a replica.
# Leaves screenshots (light, dark, phone, search, handoff) in target/dashboard.
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "skipped: dashboard: node and npm are not installed (apt install nodejs npm)"
    exit 77
fi
if [ "${SKEIN_TEST_PLAIN:-0}" != 0 ]; then
    echo "skipped: dashboard: asks for what a plain directory does not do"
    exit 77
fi
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$chromium" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; }
    { install || { apt-get update -qq && install; }; } >/dev/null 2>&1
    chromium=$(command -v chromium || true)
fi
if [ -z "$chromium" ]; then
    echo "skipped: dashboard: chromium is not installed and cannot be (apt install chromium)"
    exit 77
fi
# Drives an installed browser; downloads none itself.
if [ ! -d "$CACHE/dashboard/node_modules/playwright-core" ]; then
    mkdir -p "$CACHE/dashboard"
    if ! npm install --silent --no-fund --no-audit --prefix "$CACHE/dashboard" playwright-core@1 >npm.log 2>&1; then
        echo "skipped: dashboard: playwright-core cannot be installed: $(tail -n 1 npm.log)"
        exit 77
    fi
fi
export CHROMIUM="$chromium" SHOTS="$CACHE/../dashboard" NODE_PATH="$CACHE/dashboard/node_modules"
mkdir -p "$SHOTS"
exec timeout -k 5 240 node "$APPS/dashboard.js"
