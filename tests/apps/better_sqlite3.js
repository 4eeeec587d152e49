// Transactions through better-sqlite3 on the primary, watched by a connection on the replica.
const path = require("path");
const fs = require("fs");
const Database = require(process.env.MODULE);
const { PRIMARY, REPLICA } = process.env;
const sleep = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

const writer = new Database(path.join(PRIMARY, "better.db"));
writer.pragma("journal_mode = WAL");
writer.exec("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)");
const fill = writer.prepare("INSERT INTO account VALUES(?, 1000)");
writer.transaction(() => { for (let id = 0; id < 50; id++) fill.run(id); })();

const until = (what, probe) => {
  for (let round = 0; round < 2000; round++) {
    if (probe()) return;
    sleep(10);
  }
  throw new Error(`not within 20 s: ${what}`);
};
until("the replica has the database", () => fs.existsSync(path.join(REPLICA, "better.db")));
let reader;
until("the replica has the table", () => {
  try {
    reader = new Database(path.join(REPLICA, "better.db"), { readonly: true });
    return reader.prepare("SELECT count(*) AS n FROM account").get().n === 50;
  } catch (error) {
    return false;
  }
});
const look = reader.prepare("SELECT sum(balance) AS sum FROM account");
const change = writer.prepare("UPDATE account SET balance = balance + ? WHERE id = ?");
const move = writer.transaction((from, to, amount) => {
  change.run(-amount, from);
  if (amount === 13) throw new Error("taken back");
  change.run(amount, to);
});
for (let round = 0; round < 400; round++) {
  try {
    move(round % 50, (round * 7 + 1) % 50, round % 20);
  } catch (error) {
    if (error.message !== "taken back") throw error;
  }
  if (look.get().sum !== 50000) throw new Error("a reader on the replica saw half a transaction");
}
writer.exec("CREATE TABLE done(v)");
until("the replica has the last transaction", () =>
  reader.prepare("SELECT count(*) AS n FROM sqlite_schema WHERE name = 'done'").get().n === 1);
const rows = (db) => JSON.stringify(db.prepare("SELECT * FROM account ORDER BY id").all());
if (rows(reader) !== rows(writer)) throw new Error("primary and replica differ");
if (reader.pragma("integrity_check", { simple: true }) !== "ok") throw new Error("integrity_check on the replica");
reader.close();
writer.close();
