/** Swarms to look at: whole, with a gap, many, empty, and one whose peers mean harm. */

import type { Health, History, Invite, Market, Model, Money, Peer, Request, Swarm, UsedByKey } from '../src/api/types.ts'

const MODEL = 'SmolLM2-135M-Instruct'
const DIGEST = 'sha256:9c1f0e4b7d2a58c3e6f1'
const PEERS = [
  '12D3KooWQ8mFzKvT3nJxLr5yHc2bVp9sWdEa7uGt4XkRq6',
  '12D3KooWBv5Ys9dNfKqPmXw2eTgHj8rLc4uZa6iDo3SxYe',
  '12D3KooWTn4cRk7bLwVhQp6zMxJd9fGs2yUa5eCi8ToWjK',
  '12D3KooWHg6pXs3tCdZnRv8mQkLb5wYf9jEa2uTo7iNxcP',
  '12D3KooWMc9wDk5qGfTsVb2nXrPj7hLz4yEa8uKo6iRxtB',
  '12D3KooWRs2vNp8dKmGwXc5tQfZb9jLh3yEa6uTo4iVxnD',
]
const GATEWAY = '12D3KooWGw7tPz4mVdXnRs9kQcLb2wYf5jEa8uTo3iHxgT'
const OPERATOR = '12D3KooWLq3vXf8dNbTsRw5mPkYc9jGh2zEa7uHo4iVxtB'
const HARM = '<img src=x onerror="window.harmed=1">"\'><script>window.harmed=1</script>'

export const ANSWER = `The sea is salty because **rivers carry dissolved minerals** into it, and only the water leaves again.

1. Rain is slightly acidic and *wears rocks away*.
2. Rivers bring sodium and chloride to the sea.
3. The sun takes the water back up; the salt stays.

\`\`\`python
def salinity(salt_g: float, water_kg: float) -> float:
    """Grams of salt in a kilogram of sea water."""
    return salt_g / water_kg
\`\`\`

On average that is about \`35 g\` in each kilogram.`

function peer(i: number, start: number, end: number, more: Partial<Peer> = {}): Peer {
  return {
    peer: PEERS[i] ?? `12D3KooW${String(i).padStart(38, 'x')}`,
    agent: 'shoal/0.1.0',
    path: 'direct',
    rtt_ms: [0.8, 4.2, 1.9, 18, 46, 9][i % 6] ?? 1,
    me: false,
    expires_in_s: 24 - (i % 4) * 3,
    model: MODEL,
    digest: DIGEST,
    start,
    end,
    n_blocks: 30,
    format: 'int8',
    device: 'cpu',
    device_memory: 32 * 2 ** 30,
    share: i === 1 ? 0 : i === 2 ? 0.25 : 1,
    token_joules: i % 2 ? null : 0.4 + i * 0.13,
    tokens: 65536,
    tokens_free: 65536 - 800 * i,
    sessions: i % 3,
    step_ms: 3.1 + i * 0.7,
    operator: i % 3 === 1 ? OPERATOR : null,
    ...more,
  }
}

function model(peers: Peer[], id = MODEL, digest = DIGEST, n = 30): Model {
  const coverage = Array.from({ length: n }, (_, block) => peers.filter((p) => p.digest === digest && p.start <= block && block < p.end).length)
  const missing: string[] = []
  coverage.forEach((served, block) => {
    if (served) return
    const last = missing.at(-1)?.split(':')
    if (last && Number(last[1]) === block) missing[missing.length - 1] = `${last[0]}:${block + 1}`
    else missing.push(`${block}:${block + 1}`)
  })
  const runs: Model['runs'] = []
  coverage.forEach((served, block) => {
    const last = runs.at(-1)
    if (last?.[2] === served) last[1] = block + 1
    else runs.push([block, block + 1, served])
  })
  return { id, digest, n_blocks: n, format: 'int8', formats: ['int8'], runs, missing }
}

const CROWD_MODELS = [MODEL, 'Llama-3.1-8B-Instruct', 'Qwen3-30B-A3B']

/** Three hundred, of four versions and three models, from the next room to the other side of the world. */
function crowd(n = 300): Peer[] {
  return Array.from({ length: n }, (_, i) => {
    const at = (i * 7) % 21
    return peer(100 + i, at, at + 10, {
      step_ms: 3 + (i % 40),
      token_joules: null,
      tokens_free: 65536 - 150 * i,
      peer: `12D3KooW${String((i * 7919) % 99991).padStart(36, 'QmFzKvTnJxLryHcbVp')}${String(i).padStart(4, '0')}`,
      agent: ['shoal/0.3.0', 'shoal/0.3.0', 'shoal/0.2.1', 'shoal/0.2.0', 'shoal/0.3.0'][i % 5] ?? '',
      model: CROWD_MODELS[i % 3] ?? MODEL,
      digest: `${DIGEST}${i % 3}`,
      path: i % 11 === 0 ? 'none' : i % 4 === 0 ? 'relayed' : 'direct',
      rtt_ms: i % 11 === 0 ? null : 0.6 * 1.023 ** i,
      device: i % 6 === 0 ? 'NVIDIA A100' : 'cpu',
      share: i % 17 === 0 ? 0 : 1,
    })
  })
}

export function scene(name: string): Swarm {
  if (name === 'crowd') {
    const peers = crowd()
    const models = CROWD_MODELS.map((id, i) => model(peers, id, `${DIGEST}${i}`))
    return { peer: GATEWAY, swarm: 'public', at: Date.now() / 1000, peers, peers_in_all: 300, links: [], models, models_in_all: 3 }
  }
  const three = [peer(0, 0, 10), peer(1, 10, 20), peer(2, 20, 30)]
  const scenes: Record<string, Peer[]> = {
    empty: [],
    gap: [three[0] as Peer, three[2] as Peer, peer(3, 0, 6, { path: 'none', rtt_ms: null })],
    many: [
      ...three,
      peer(3, 0, 15, { path: 'relayed' }),
      peer(4, 15, 30),
      peer(5, 6, 24, { path: 'relayed' }),
      ...Array.from({ length: 9 }, (_, i) => peer(6 + i, (i * 7) % 20, ((i * 7) % 20) + 10)),
    ],
    hostile: three.map((p) => ({ ...p, model: HARM, agent: HARM })),
  }
  const peers = scenes[name] ?? [...three, peer(3, 0, 15, { path: 'relayed' }), peer(4, 15, 30)]
  const links = peers.slice(1).map((p, i) => ({ a: peers[i]?.peer ?? '', b: p.peer, rtt_ms: 3 + i * 4, path: 'direct' as const }))
  const id = name === 'hostile' ? HARM : MODEL
  return { peer: GATEWAY, swarm: name === 'hostile' ? HARM : 'home', at: Date.now() / 1000, peers, peers_in_all: peers.length, links, models: peers.length ? [model(peers, id)] : [], models_in_all: peers.length ? 1 : 0 }
}

export function requests(name: string): Request[] {
  if (name === 'empty') return []
  const now = Date.now() / 1000
  const route = scene('three').peers.slice(0, 3).map(({ peer, start, end }) => ({ peer, start, end, carrier: 'direct' }))
  const base: Request = {
    id: 'chatcmpl-7f3a', model: MODEL, state: 'running', started: now - 4, prompt_tokens: 212, tokens: 131, ttft_ms: 84, tokens_per_s: 31.4, error: null, route,
    hops: [{ compute_ms: 5.2, network_ms: 0.7, waiting_ms: 0.3 }, { compute_ms: 6.1, network_ms: 4.1, waiting_ms: 2.8 }, { compute_ms: 5.6, network_ms: 1.8, waiting_ms: 0 }],
    own: [],
    reroutes: [],
    speculation: {},
  }
  const lost = { at: now - 62, gap_s: 0.82, lost: [PEERS[5] ?? ''], way: 'replay' }
  return [
    base,
    { ...base, id: 'chatcmpl-51bd', state: 'done', started: now - 64, tokens: 408, tokens_per_s: 24.8, reroutes: [lost] },
    { ...base, id: 'chatcmpl-19c2', state: 'cancelled', started: now - 310, tokens: 22 },
    { ...base, id: 'chatcmpl-02aa', state: 'failed', started: now - 4000, tokens: 0, ttft_ms: null, tokens_per_s: null, hops: [], route: [], error: 'Blocks 10–19 are served by nobody. Check: shoal status. Next: shoal serve SmolLM2-135M-Instruct --span 10:20' },
  ].map((request) => (name === 'hostile' ? { ...request, model: HARM, error: HARM } : request)) as Request[]
}

export function health(): Health {
  const ok = (name: string, message: string) => ({ name, ok: true, severity: 'ok' as const, message, check: '', next_command: '' })
  return {
    ok: true,
    checks: [
      ok('python', '3.13.1'),
      ok('memory', '11.2 GiB free'),
      ok('model', `${MODEL} is here`),
      { name: 'mdns', ok: true, severity: 'note', message: 'no multicast on this network: machines are found by address alone', check: 'whether the router isolates its clients', next_command: 'shoal invite' },
      { name: 'ports', ok: false, severity: 'error', message: 'port 4001 is taken by another program', check: 'which one has it', next_command: 'shoal up --port 4002' },
    ],
  }
}

export function invite(): Invite {
  let cells = ''
  for (let y = 0; y < 29; y++) for (let x = 0; x < 29; x++) if ((x * 7 + y * 13 + ((x * y) % 5)) % 3 === 0) cells += `<path d="M${x} ${y}h1v1h-1z"/>`
  const code = 'shoal1-' + 'k7qm2x9fwd3htpav6nze8r0c15bjgyw4sm0'.repeat(7)
  return { command: `shoal join ${code} && shoal up`, code, qr_svg: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 29 29">${cells}</svg>`, here_only: false }
}

/** What programs need, as the gateway tells it; one is enough to see how it looks. */
export function apps(): object[] {
  return [
    {
      id: 'aider',
      title: 'Aider',
      first: 'python -m pip install aider-install && aider-install',
      text: 'export OPENAI_API_BASE=http://127.0.0.1:4480/v1\nexport OPENAI_API_KEY=none\naider --model openai/m',
      launch: 'shoal launch aider',
      note: '',
    },
  ]
}

/** A day with an afternoon of answers, a node that was gone for an hour, and a gateway that was down at noon. */
export function history(name: string): History {
  const now = Math.floor(Date.now() / 60_000)
  const moments = Array.from({ length: 1440 }, (_, index) => ({
    minute: now - 1439 + index,
    peers: index > 900 && index < 960 ? 2 : 3,
    covered: index > 900 && index < 960 ? 0.67 : 1,
    tokens: Math.max(0, Math.round(1800 * Math.sin((index - 500) / 300))),
  }))
  return { model: scene(name).models[0]?.id ?? 'SmolLM2-135M-Instruct', moments: moments.filter((_, index) => index < 700 || index > 740) }
}

/** What the peers of a scene offer: every second one for a price, one that audits found out. */
export function market(name: string): Market {
  const shown = scene(name)
  const spans = shown.peers.filter((one) => one.model !== null).map((one, i) => ({
    model: one.model ?? '',
    start: one.start,
    end: one.end,
    peer: one.peer,
    format: one.format ?? '',
    tokens_per_s: one.step_ms ? Math.round(10_000 / one.step_ms) / 10 : null,
    tokens_free: one.tokens_free,
    share: one.share,
    attests: i === 1 ? 'tdx' : '',
    found_out: i === 2,
    price: i % 2 ? `0.00${i % 9}` : '',
  }))
  const models = shown.models.map((one, i) => ({
    name: one.id,
    digest: one.digest,
    n_blocks: one.n_blocks,
    format: one.format,
    peers: spans.length,
    complete: one.missing.length === 0,
    tokens_per_s: i ? null : 24.8,
    protection: ['fast', 'audited'],
  }))
  return { models, spans, peers_in_all: shown.peers_in_all }
}

export function marketCsv(name: string): string {
  return ['model,peer,price', ...market(name).spans.map(({ model, peer, price }) => `${model},${peer},${price}`)].join('\n')
}

/** A node that earns by day, and a client that spends in the first week. */
export function money(name: string): Money {
  const now = Math.floor(Date.now() / 3_600_000)
  const hours = Array.from({ length: 720 }, (_, index) => ({
    hour: now - 719 + index,
    earned: index % 24 > 8 ? '0.0005' : '0',
    spent: index < 168 ? '0.0002' : '0',
  }))
  return { hours: name === 'empty' ? [] : hours }
}

/** Nine keys, of which some are used on working days alone. */
export function used(): UsedByKey {
  const days = Array.from({ length: 30 }, (_, index) => new Date(Date.now() - (29 - index) * 86_400_000).toISOString().slice(0, 10))
  const keys = Array.from({ length: 9 }, (_, key) => ({
    key: `key_${key}`,
    name: ['this machine', 'Ada', 'notebook', 'aider', 'Bob', 'search', 'phone', 'nightly', 'guest'][key] ?? '',
    tokens: days.map((_, day) => (day % 7 < 5 ? Math.round(20_000 / (key + 1) ** 1.3 * (1 + Math.sin(day + key))) : 0)),
  }))
  return { days, keys }
}
