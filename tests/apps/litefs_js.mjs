// litefs-js on the mounts of a primary and of a replica. It has no reader of events: those are read with fetch.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import http from 'node:http'
import os from 'node:os'

const { MODULE, PRIMARY, REPLICA, PRIMARY_HTTP } = process.env
const load = name => import(`${MODULE}/dist/${name}.js`)
const litefs = await load('index')
const express = await load('express')

const sql = text => execFileSync('sqlite3', [`${PRIMARY}/litefs.db`, '.timeout 5000', text]).toString()
const on = async (directory, work) => {
	process.env.LITEFS_DIR = directory
	return await work()
}
const until = async (what, probe) => {
	for (const end = Date.now() + 30_000; Date.now() < end; ) {
		const found = await probe()
		if (found) return found
		await new Promise(resolve => setTimeout(resolve, 10))
	}
	throw new Error(`not in time: ${what}`)
}

// Events from the beginning.
const events = []
const stream = await fetch(`${PRIMARY_HTTP}/events`)
void (async () => {
	const decoder = new TextDecoder()
	let rest = ''
	for await (const part of stream.body) {
		const lines = (rest + decoder.decode(part, { stream: true })).split('\n')
		rest = lines.pop()
		lines.forEach(line => events.push(JSON.parse(line)))
	}
})().catch(() => {})

sql('PRAGMA journal_mode=wal; CREATE TABLE t(v); INSERT INTO t VALUES(1)')

// Who is primary.
const primary = await on(PRIMARY, litefs.getInstanceInfo)
assert.deepEqual(primary, {
	primaryInstance: os.hostname(),
	currentInstance: os.hostname(),
	currentIsPrimary: true,
})
const replica = await on(REPLICA, litefs.getInstanceInfo)
assert.equal(replica.primaryInstance, '127.0.0.1')
assert.equal(replica.currentIsPrimary, false)
assert.deepEqual(litefs.getInstanceInfoSync(REPLICA), replica)

// Transaction numbers.
const before = await on(PRIMARY, litefs.getTxNumber)
assert.ok(before >= 1, `${before}`)
sql('INSERT INTO t VALUES(2)')
const number = await on(PRIMARY, litefs.getTxNumber)
assert.equal(number, before + 1)
await until('the replica has it', () => on(REPLICA, () => litefs.waitForUpToDateTxNumber(number)))
assert.equal(await litefs.getTxNumber(REPLICA, 'litefs.db'), number)
const pos = fs.readFileSync(`${REPLICA}/litefs.db-pos`, 'utf8')
assert.match(pos, /^[0-9a-f]{16}\/[0-9a-f]{16}\n$/)
assert.equal(pos, fs.readFileSync(`${PRIMARY}/litefs.db-pos`, 'utf8'))
assert.ok(Math.abs(fs.statSync(`${REPLICA}/litefs.db-pos`).mtimeMs - Date.now()) < 60_000)

// How far behind.
assert.equal(fs.readFileSync(`${PRIMARY}/.lag`, 'utf8'), '+000000000\n')
assert.match(fs.readFileSync(`${REPLICA}/.lag`, 'utf8'), /^\+\d{9}\n$/)
assert.ok(fs.readdirSync(REPLICA).includes('.lag'))

// The middleware as an application uses it, on either node.
const server = http.createServer(async (req, res) => {
	const next = work => new Promise(resolve => work(req, res, () => resolve(true)).then(() => resolve(false)))
	if (!(await next(express.getTransactionalConsistencyMiddleware()))) return
	if (!(await next(express.getEnsurePrimaryMiddleware()))) return
	if (req.method === 'POST') sql('INSERT INTO t VALUES(3)')
	await next(express.getSetTxNumberMiddleware())
	res.end('served')
})
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
const url = `http://127.0.0.1:${server.address().port}/`
const ask = (directory, init) => on(directory, () => fetch(url, { redirect: 'manual', ...init }))

const refused = await ask(REPLICA, { method: 'POST' })
assert.deepEqual([refused.status, refused.headers.get('fly-replay')], [409, 'instance=127.0.0.1'])
const wrote = await ask(PRIMARY, { method: 'POST' })
const cookie = wrote.headers.get('set-cookie')
assert.equal(wrote.status, 200)
assert.match(cookie, new RegExp(`^txnum=${number + 1};`))
// Asked again where it is told to ask elsewhere; once it has the transaction it serves and takes the cookie away.
const served = await until('the replica serves', async () => {
	const answer = await ask(REPLICA, { headers: { cookie: cookie.split(';')[0] } })
	if (answer.status === 200) return answer
	assert.equal(answer.headers.get('fly-replay'), 'instance=127.0.0.1')
})
assert.match(served.headers.get('set-cookie'), /txnum=0;.*1970/)
server.close()
server.closeAllConnections()

// Events, as LiteFS's own clients read them.
const tx = await until('the event of the last transaction', () =>
	events.find(event => event.type === 'tx' && parseInt(event.data.txID, 16) === number + 1 && event.db === 'litefs.db'),
)
assert.deepEqual(Object.keys(tx), ['type', 'db', 'data'])
assert.deepEqual(Object.keys(tx.data), ['txID', 'postApplyChecksum', 'pageSize', 'commit', 'timestamp'])
assert.deepEqual([tx.data.txID.length, tx.data.postApplyChecksum.length, tx.data.pageSize], [16, 16, 4096])
assert.ok(!Number.isNaN(Date.parse(tx.data.timestamp)))
assert.deepEqual(events[0], { type: 'init', data: { isPrimary: true, hostname: '127.0.0.1' } })
const numbers = events.filter(event => event.db === 'litefs.db').map(event => parseInt(event.data.txID, 16))
assert.deepEqual(numbers, numbers.map((_, index) => numbers[0] + index), 'none is missing, none comes twice')
process.exit(0)
