// What an operator sees and does: roles, search, live charts, keyboard, a handoff, both themes and a phone.
'use strict';
const { chromium } = require('playwright-core');
const { spawn, execFileSync } = require('child_process');
const assert = require('assert');
const fs = require('fs');
const net = require('net');
const path = require('path');

const dir = fs.mkdtempSync(path.join(process.cwd(), 'nodes-'));
const shots = process.env.SHOTS;
const nodes = [];

function port() {
  return new Promise((done, fail) => {
    const server = net.createServer().on('error', fail);
    server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => done(port)); });
  });
}

async function start(name, role, join) {
  const [grpc, http] = [await port(), await port()];
  const mount = path.join(dir, name);
  fs.mkdirSync(mount);
  const log = fs.openSync(path.join(dir, `${name}.log`), 'w');
  const args = ['mount', '--name', name, '--role', role, '--mount', mount, '--data', path.join(dir, `${name}.data`),
    '--listen', `127.0.0.1:${grpc}`, '--http', `127.0.0.1:${http}`,
    // A machine that also runs a browser is slow to answer.
    '--heartbeat', '500ms', '--election-timeout', '5s', '--commit-timeout', '30s', ...(join ? ['--join', join] : ['--bootstrap'])];
  const child = spawn(process.env.SKEIN, args, { stdio: ['ignore', 'pipe', log] });
  await new Promise((done, fail) => {
    const late = setTimeout(() => fail(new Error(`${name} did not mount`)), 60000);
    child.stdout.on('data', text => { if (String(text).startsWith('mounted')) { clearTimeout(late); done(); } });
    child.on('exit', code => fail(new Error(`${name} ended with ${code}: ${fs.readFileSync(path.join(dir, `${name}.log`))}`)));
  });
  child.removeAllListeners('exit');
  const node = { name, child, mount, grpc: `127.0.0.1:${grpc}`, url: `http://127.0.0.1:${http}` };
  nodes.push(node);
  return node;
}

async function stop() {
  for (const { child, mount } of nodes.reverse()) {
    const ended = new Promise(done => child.on('exit', done));
    if (child.exitCode === null) {
      child.kill('SIGTERM');
      await Promise.race([ended, new Promise(done => setTimeout(done, 15000))]);
      child.kill('SIGKILL');
    }
    try { execFileSync('umount', ['-l', mount], { stdio: 'ignore' }); } catch { /* it is gone */ }
  }
}

const sqlite = (node, db, sql) => execFileSync('sqlite3', ['-cmd', '.timeout 20000', path.join(node.mount, db), sql], { stdio: 'pipe' });
const tokenless = { colorScheme: 'light', viewport: { width: 1280, height: 900 }, deviceScaleFactor: 1 };

async function main() {
  const n1 = await start('n1', 'voter');
  const n2 = await start('n2', 'voter', n1.grpc);
  await start('n3', 'voter', n1.grpc);
  await start('edge-1', 'replica', n1.grpc);
  const tenant = path.join(dir, 'tenant.db');
  execFileSync('sqlite3', [tenant, 'CREATE TABLE t(v);']);
  for (let number = 0; number < 120; number++) {
    const url = `${n1.url}/v1/databases/tenant-${String(number).padStart(4, '0')}.db`;
    const answer = await fetch(url, { method: 'PUT', body: fs.readFileSync(tenant) });
    assert(answer.ok, await answer.text());
  }
  sqlite(n1, 'app.db', 'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(v);');
  const writer = spawn('sh', ['-c',
    'i=0; while :; do i=$((i+1)); n=$((i / 12 % 5 * 4 + 1)); j=0; while [ $j -lt $n ]; do j=$((j+1)); echo "INSERT INTO t VALUES(randomblob(900));"; done; sleep 0.1; done'
    + ` | sqlite3 -cmd ".timeout 20000" "${path.join(n1.mount, 'app.db')}"`], { stdio: 'ignore', detached: true });

  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  try {
    const errors = [];
    const open = async (options, url) => {
      const page = await (await browser.newContext({ ...tokenless, ...options })).newPage();
      page.setDefaultTimeout(60000);
      page.on('pageerror', error => errors.push(String(error)));
      page.on('console', message => { if (message.type() === 'error') errors.push(message.text()); });
      page.on('request', request => { if (!request.url().startsWith(url) && !request.url().startsWith('data:')) errors.push(`asks ${request.url()}`); });
      await page.goto(url);
      return page;
    };
    const page = await open({}, n1.url);
    await page.waitForFunction(() => document.querySelectorAll('#tree .node').length === 4);
    await page.waitForFunction(() => document.getElementById('live').textContent === 'live');
    assert.match(await page.textContent('#tree .node.lead'), /n1\s*primary/);
    assert.match(await page.textContent('#tree'), /edge-1\s*replica/);
    assert.equal(await page.textContent('#db-count'), '(121)');
    await page.waitForFunction(() => Number(document.getElementById('rate').textContent) > 0);
    // Some seconds of charts.
    await page.waitForTimeout(15000);
    await page.screenshot({ path: path.join(shots, 'light.png') });

    // The table: a page of rows, search by several words, order.
    assert.equal(await page.locator('#rows tr').count(), 100);
    await page.fill('#search', '.db tenant-011');
    assert.equal(await page.locator('#rows tr').count(), 10);
    await page.screenshot({ path: path.join(shots, 'search.png') });
    await page.fill('#search', 'nothing like it');
    assert.match(await page.textContent('#none'), /No database has such a name/);
    await page.fill('#search', '');
    await page.click('th button:has-text("Size")');
    assert.equal(await page.getAttribute('th:has-text("Size")', 'aria-sort'), 'ascending');
    await page.click('th button:has-text("Size")');
    assert.match(await page.textContent('#rows tr:first-child td:first-child'), /app\.db/);

    // Without a mouse: what has the focus has a name.
    await page.waitForSelector('#handoff:enabled');
    await page.evaluate(() => document.activeElement.blur());
    const focused = new Set();
    for (let step = 0; step < 14; step++) {
      await page.keyboard.press('Tab');
      focused.add(await page.evaluate(() => { const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40); }));
    }
    for (const name of ['theme', 'handoff', 'search', 'Name']) assert(focused.has(name), `${name} has no focus: ${[...focused]}`);
    const nameless = await page.evaluate(() => [...document.querySelectorAll('button, input, select, [role=img], section')]
      .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.closest('label'))).length);
    assert.equal(nameless, 0);

    // A handoff.
    await page.waitForSelector('#handoff:enabled');
    await page.click('#handoff');
    await page.waitForFunction(() => [...document.getElementById('to').options].some(o => o.value === 'n2' && !o.disabled));
    await page.selectOption('#to', 'n2');
    await page.screenshot({ path: path.join(shots, 'handoff.png') });
    await page.click('#do-handoff');
    await page.waitForFunction(() => /n2\s*primary/.test(document.querySelector('#tree .node.lead')?.textContent || ''));
    assert.match(await page.textContent('#timeline'), /handed off to n2/);
    assert.equal(await page.locator('#ask-handoff[open]').count(), 0);

    // Dark, and a phone, and what another node says.
    // A replica is known to the voter that it follows.
    const dark = await open({ colorScheme: 'dark' }, n2.url);
    await dark.waitForFunction(() => document.querySelectorAll('#tree .node').length >= 3);
    await dark.waitForTimeout(6000);
    await dark.screenshot({ path: path.join(shots, 'dark.png') });
    const phone = await open({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }, n2.url);
    await phone.waitForFunction(() => document.querySelectorAll('#tree .node').length >= 3);
    await phone.waitForTimeout(3000);
    const wide = await phone.evaluate(() => document.documentElement.scrollWidth);
    assert(wide <= 390, `the page is ${wide} wide on a phone`);
    await phone.screenshot({ path: path.join(shots, 'phone.png') });

    // The console, on a node that is not primary: it reads, shows the plan, and changes something only where that is allowed.
    const sql = await open({ viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true }, n1.url);
    await sql.goto(`${n1.url}/console#app.db`);
    await sql.click('#tables button:has-text("t")');
    assert.match(await sql.textContent('#text'), /CREATE TABLE t/);
    await sql.click('#run');
    await sql.waitForFunction(() => /^100 rows.*node n1/.test(document.getElementById('facts').textContent));
    await sql.click('#plan');
    await sql.waitForFunction(() => /SCAN t/.test(document.getElementById('text').textContent));
    await sql.fill('#sql', 'CREATE TABLE made(v)');
    await sql.click('#run');
    await sql.waitForSelector('#problem:not([hidden])');
    assert.match(await sql.textContent('#problem'), /READONLY/);
    await sql.check('#writes');
    await sql.press('#sql', 'Control+Enter');
    await sql.waitForFunction(() => /node n2/.test(document.getElementById('facts').textContent));
    await sql.fill('#sql', "INSERT INTO made VALUES('<b>x</b>'), (NULL), (x'00ff') RETURNING v");
    await sql.click('#run');
    await sql.waitForFunction(() => /^3 rows, 3 changed/.test(document.getElementById('facts').textContent));
    assert.deepEqual(await sql.locator('#rows td').allTextContents(), ['<b>x</b>', 'NULL', 'blob, 2 bytes']);
    assert(await sql.evaluate(() => document.documentElement.scrollWidth) <= 390);
    await sql.screenshot({ path: path.join(shots, 'console.png') });

    // A node that goes is seen to go.
    nodes[2].child.kill('SIGKILL');
    await dark.waitForFunction(() => /not reached/.test(document.getElementById('tree').textContent));
    await dark.waitForFunction(() => /n3 is not reached/.test(document.getElementById('timeline').textContent));
    await dark.screenshot({ path: path.join(shots, 'lost.png') });
    assert.deepEqual(errors, []);
    console.log(`screenshots are in ${path.resolve(shots)}`);
  } finally {
    await browser.close();
    try { process.kill(-writer.pid, 'SIGKILL'); } catch { /* it has ended */ }
  }
}

main().then(() => stop()).catch(async error => { console.error(error); await stop(); process.exit(1); });
