/**
 * A gateway that only pretends, to work on the page without a swarm: `node dev/gateway.ts [port] [scene]`.
 *
 * It serves the built page and speaks what the page needs of `/api/` and `/v1/`. `PUT /dev/scene/NAME` changes
 * the scene while it runs.
 */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { readFile } from 'node:fs/promises'
import { extname, join, normalize } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ANSWER, apps, scene, health, history, invite, market, marketCsv, money, requests, used } from './scenes.ts'

const ROOT = join(import.meta.dirname, '../../src/shoal/gateway/page/built')
const TYPES: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.css': 'text/css',
  '.svg': 'image/svg+xml',
}
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
  "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"

const [port = '4480', first = 'whole'] = process.argv.slice(2)
let current = first
const listeners = new Set<ServerResponse>()

function tell(name: string, data: unknown): void {
  for (const listener of listeners) send(listener, name, data)
}

function send(response: ServerResponse, name: string, data: unknown): void {
  response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`)
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

function stream(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
}

async function page(path: string, response: ServerResponse): Promise<void> {
  const file = join(ROOT, normalize(path === '/' ? '/index.html' : path))
  try {
    const type = TYPES[extname(file)] ?? 'application/octet-stream'
    const body = await readFile(file)
    response.writeHead(200, { 'content-type': type, 'content-security-policy': POLICY }).end(body)
  } catch {
    json(response, 404, { error: { message: `no ${path}`, type: 'not_found', param: null, code: 'not_found' } })
  }
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  let asked = ''
  for await (const part of request) asked += part
  const { model, messages } = JSON.parse(asked) as { model: string; messages: { content: string }[] }
  const question = messages.at(-1)?.content ?? ''
  const route = scene(current).peers.filter((p) => p.model === model).map(({ peer, start, end }) => ({ peer, start, end, carrier: 'direct' }))
  const facts = { request: 'chatcmpl-dev', route, tokens_per_s: 31.4, ttft_ms: 84, reroutes: current === 'lost' ? requests(current)[0]?.reroutes : [] }
  stream(response)
  const chunk = (delta: object, more: object = {}, finish: string | null = null): boolean =>
    response.write(`data: ${JSON.stringify({ id: 'chatcmpl-dev', object: 'chat.completion.chunk', model, choices: [{ index: 0, delta, finish_reason: finish }], ...more })}\n\n`)
  const text = question.startsWith('echo ') ? question.slice(5) : ANSWER
  await sleep(400)
  chunk({ role: 'assistant', content: '' }, { shoal: facts })
  let n = 0
  for (const word of text.match(/\s*\S+\s*/g) ?? []) {
    if (response.destroyed) return
    chunk({ content: word })
    tell('token', { request: 'chatcmpl-dev', n: ++n, route: route.map(({ peer }) => peer) })
    await sleep(32)
  }
  chunk({}, { shoal: facts }, 'stop')
  response.write(`data: ${JSON.stringify({ id: 'chatcmpl-dev', choices: [], usage: { prompt_tokens: 12, completion_tokens: n, total_tokens: 12 + n } })}\n\n`)
  response.end('data: [DONE]\n\n')
}

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url ?? '/', 'http://dev')
  if (pathname.startsWith('/dev/scene/')) {
    current = pathname.slice('/dev/scene/'.length)
    tell('swarm', scene(current))
    tell('requests', requests(current))
    return json(response, 200, current)
  }
  const authorized = current !== 'locked' || request.headers.authorization === 'Bearer sk-shoal-good'
  if (!authorized && /^\/(api|v1)\//.test(pathname)) {
    return json(response, 401, { error: { message: 'a key is needed', type: 'authentication_error', param: null, code: 'invalid_api_key' } })
  }
  if (pathname === '/api/events') {
    stream(response)
    send(response, 'swarm', scene(current))
    send(response, 'requests', requests(current))
    send(response, 'health', health())
    listeners.add(response)
    response.on('close', () => listeners.delete(response))
  } else if (pathname === '/api/invite') json(response, 200, invite())
  else if (pathname === '/api/history') json(response, 200, history(current))
  else if (pathname === '/api/market') json(response, 200, market(current))
  else if (pathname === '/api/market.csv') response.writeHead(200, { 'content-type': 'text/csv' }).end(marketCsv(current))
  else if (pathname === '/api/money') json(response, 200, money(current))
  else if (pathname === '/api/usage') json(response, 200, used())
  else if (pathname === '/api/apps') json(response, 200, apps())
  else if (pathname === '/v1/chat/completions') void answer(request, response)
  else void page(pathname, response)
})

setInterval(() => tell('swarm', scene(current)), 2000).unref()
server.listen(Number(port), '127.0.0.1', () => console.log(`http://127.0.0.1:${port}/`))
