// @libsql/client and Drizzle's driver against three nodes; the arguments are the URLs of their APIs.
import assert from "node:assert/strict"
import { createClient } from "@libsql/client"
import { drizzle } from "drizzle-orm/libsql"
import { integer, sqliteTable, text } from "drizzle-orm/sqlite-core"
import { eq, sql } from "drizzle-orm"

const urls = process.argv.slice(2)
const clients = urls.map((url) => createClient({ url: `${url}/dev/node.db/` }))
const status = async (url) => (await fetch(`${url}/v1/status`)).json()

// Moves the primary to the next node, and says which one that is.
async function handOff() {
    const now = (await status(urls[0])).primary.name
    const names = await Promise.all(urls.map(async (url) => (await status(url)).node))
    const to = names[(names.indexOf(now) + 1) % names.length]
    const answer = await fetch(`${urls[0]}/v1/handoff`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ to }),
    })
    assert.equal(answer.status, 200, await answer.text())
    return names.indexOf(to)
}

async function isSeen(client, query, expected) {
    for (let tries = 0; tries < 200; tries++) {
        const found = await client.execute(query).catch(() => undefined)
        if (found && found.rows[0][0] === expected) return
        await new Promise((done) => setTimeout(done, 25))
    }
    assert.fail(`${query} is not ${expected}`)
}

// Values, arguments, errors.
const [one, two, three] = clients
await one.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, i, s TEXT, b BLOB)")
const inserted = await two.execute({
    sql: "INSERT INTO t (i, s, b) VALUES (?, ?, ?)",
    args: [9007199254740993n, "ä", new Uint8Array([0, 255])],
})
assert.equal(inserted.rowsAffected, 1)
assert.equal(inserted.lastInsertRowid, 1n)
await isSeen(three, "SELECT count(*) FROM t", 1)
const exact = createClient({ url: `${urls[2]}/dev/node.db/`, intMode: "bigint" })
const row = (await exact.execute({ sql: "SELECT i, s, b FROM t WHERE id = $id", args: { id: 1 } })).rows[0]
assert.equal(row.i, 9007199254740993n)
assert.equal(row.s, "ä")
assert.deepEqual(new Uint8Array(row.b), new Uint8Array([0, 255]))
await assert.rejects(two.execute("INSERT INTO t (id) VALUES (1)"), { code: "SQLITE_CONSTRAINT" })
await assert.rejects(one.execute("SELECT * FROM missing"), { code: "SQL_INPUT_ERROR" })

// Batches: all or nothing, through a node that is not primary, too.
for (const client of clients) {
    await client.batch(["INSERT INTO t (s) VALUES ('a')", { sql: "INSERT INTO t (s) VALUES (?)", args: ["b"] }], "write")
    await assert.rejects(client.batch(["INSERT INTO t (s) VALUES ('c')", "INSERT INTO t (id) VALUES (1)"], "write"))
}
const read = await three.batch(["SELECT count(*) FROM t", "SELECT 1"], "read")
assert.equal(read.length, 2)
await assert.rejects(three.batch(["DELETE FROM t"], "read"))
await isSeen(one, "SELECT count(*) FROM t", 7)
await one.executeMultiple("CREATE TABLE m (v); INSERT INTO m VALUES (1); INSERT INTO m VALUES (2);")
await two.migrate(["CREATE TABLE n (v)", "ALTER TABLE n ADD COLUMN w"])

// Interactive transactions, committed, rolled back, and closed in the middle.
for (const client of clients) {
    const transaction = await client.transaction("write")
    await transaction.execute("INSERT INTO m VALUES (3)")
    assert.equal((await transaction.execute("SELECT count(*) FROM m WHERE v = 3")).rows[0][0], 1)
    await transaction.commit()
    const undone = await client.transaction("write")
    await undone.execute("DELETE FROM m")
    await undone.rollback()
    const left = await client.transaction("deferred")
    await left.execute("DELETE FROM m")
    left.close()
    await client.execute("DELETE FROM m WHERE v = 3")
}
await isSeen(two, "SELECT count(*) FROM m", 2)

// Writers on all nodes while the primary moves: what is acknowledged is there, and what is refused may be tried again.
await one.execute("CREATE TABLE w (v UNIQUE)")
const done = new Set()
let stop = false
const safe = new Set(["TRANSACTION_LOST", "STREAM_EXPIRED", "UNAVAILABLE", "SQLITE_BUSY", "SQLITE_READONLY"])
async function write(client, which) {
    for (let n = 0; !stop; n++) {
        const value = n * 10 + which
        for (;;) {
            try {
                if (n % 2 === 0) {
                    await client.execute({ sql: "INSERT INTO w VALUES (?)", args: [value] })
                } else {
                    const transaction = await client.transaction("write")
                    try {
                        await transaction.execute({ sql: "INSERT INTO w VALUES (?)", args: [value] })
                        await transaction.commit()
                    } finally {
                        transaction.close()
                    }
                }
                done.add(value)
                break
            } catch (error) {
                assert.ok(safe.has(error.code), `${error.code}: ${error.message}`)
            }
        }
    }
}
const writers = clients.map(write)
let primary
for (let moves = 0; moves < 3; moves++) {
    await new Promise((next) => setTimeout(next, 700))
    primary = await handOff()
}
await new Promise((next) => setTimeout(next, 700))
stop = true
await Promise.all(writers)
const there = new Set((await clients[primary].execute("SELECT v FROM w")).rows.map((found) => found.v))
for (const value of done) assert.ok(there.has(value), `${value} was acknowledged and is lost`)
assert.equal(there.size, done.size)
assert.ok(done.size > 20, `${done.size}`)

// Drizzle on the same clients.
const users = sqliteTable("users", { id: integer("id").primaryKey(), name: text("name").notNull() })
const db = drizzle(two)
await db.run(sql`CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)`)
await db.insert(users).values([{ name: "Ada" }, { name: "Grace" }])
await db.transaction(async (transaction) => {
    await transaction.update(users).set({ name: "Ada L." }).where(eq(users.name, "Ada"))
    const found = await transaction.select().from(users).where(eq(users.id, 1))
    assert.deepEqual(found, [{ id: 1, name: "Ada L." }])
})
await isSeen(three, "SELECT count(*) FROM users WHERE name = 'Ada L.'", 1)
assert.equal((await drizzle(three).select().from(users)).length, 2)
for (const client of clients) client.close()
console.log(`  ${done.size} writes through three nodes while the primary moved three times`)
