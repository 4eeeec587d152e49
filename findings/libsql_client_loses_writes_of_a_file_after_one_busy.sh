#!/bin/sh
# npm @libsql/client 0.18.0 (libsql 0.5.29) with a file: URL.
# Guess: after a statement has failed with SQLITE_BUSY, the next one on the same client either commits or fails too.
# Seen: later INSERTs answer rowsAffected 1 and the client itself reads the rows, but no other connection ever does; they
#   are gone when the client closes. (Close and make the client anew after each SQLITE_BUSY.)
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y > /dev/null
npm install --silent --no-audit --no-fund @libsql/client@0.18.0 libsql@0.5.29 > /dev/null
cat > run.mjs <<'JS'
import { createClient } from '@libsql/client';
import { execFileSync, spawn } from 'node:child_process';

const elsewhere = (code) => execFileSync('python3', ['-c', 'import sqlite3\n' + code]).toString().trim();
const rows = () => elsewhere("print(sqlite3.connect('app.db').execute('select count(*) from t').fetchone()[0])");

elsewhere("db = sqlite3.connect('app.db'); db.execute('pragma journal_mode=wal'); db.execute('create table t(v)'); db.commit()");
const client = createClient({ url: 'file:app.db' });
await client.execute('insert into t values(1)');
const holder = spawn('python3', ['-c', `
import sqlite3, sys
db = sqlite3.connect('app.db', isolation_level=None)
db.execute('begin immediate')
print('held', flush=True)
sys.stdin.readline()
db.execute('commit')
`], { stdio: ['pipe', 'pipe', 'inherit'] });
await new Promise((resolve) => holder.stdout.once('data', resolve));
try {
  await client.execute('insert into t values(2)');
  console.log('not busy');
} catch (error) {
  console.log('while another holds the lock:', error.code);
}
holder.stdin.write('\n');
await new Promise((resolve) => holder.once('exit', resolve));
for (const value of [3, 4]) {
  const result = await client.execute({ sql: 'insert into t values(?)', args: [value] });
  console.log('insert after it: rowsAffected', result.rowsAffected);
}
console.log('the client reads', (await client.execute('select count(*) n from t')).rows[0].n, 'rows, others', rows());
client.close();
console.log('after close others read', rows());
JS
node run.mjs > seen
cat seen
diff seen - <<'EXPECTED'
while another holds the lock: SQLITE_BUSY
insert after it: rowsAffected 1
insert after it: rowsAffected 1
the client reads 3 rows, others 1
after close others read 1
EXPECTED
