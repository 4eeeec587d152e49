#!/bin/sh
# npm @libsql/client 0.18.0 (libsql 0.5.29, hrana-client 0.10.0).
# Guess: one statement with the same arguments is bound the same way to a file: URL and over HTTP (Hrana).
# Seen: a JavaScript number is a REAL either way, also a whole one, and a bigint an INTEGER; but `true` is stored as REAL 1.0
#   in a file and sent as integer 1 over HTTP. In a column without affinity typeof() then depends on the URL.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund @libsql/client@0.18.0 libsql@0.5.29 @libsql/hrana-client@0.10.0 > /dev/null
cat > run.mjs <<'JS'
import { createClient } from '@libsql/client';
import http from 'node:http';

const statement = { sql: 'insert into t values(?),(?),(?)', args: [7, 7n, true] };
const file = createClient({ url: 'file:app.db' });
await file.execute('create table t(v)');
await file.execute(statement);
console.log('file:', (await file.execute('select typeof(v) t from t')).rows.map((row) => row.t).join(' '));
file.close();

// A server that takes everything and remembers what it was sent.
let sent;
const server = http.createServer((request, response) => {
  let body = '';
  request.on('data', (data) => (body += data));
  request.on('end', () => {
    const { requests } = JSON.parse(body);
    sent = requests[0].stmt.args;
    const result = { cols: [], rows: [], affected_row_count: 3, last_insert_rowid: '3' };
    const results = requests.map(({ type }) => ({ type: 'ok', response: type === 'execute' ? { type, result } : { type } }));
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({ baton: null, base_url: null, results }));
  });
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const remote = createClient({ url: `http://127.0.0.1:${server.address().port}` });
await remote.execute(statement);
console.log('http:', sent.map((value) => value.type).join(' '));
remote.close();
server.close();
JS
node run.mjs > seen
cat seen
diff seen - <<'EXPECTED'
file: real integer real
http: float integer integer
EXPECTED
