import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scene } from '../dev/scenes.ts'
import type { Peer } from '../src/api/types.ts'
import { arrivals } from '../src/machine/arrivals.ts'
import { describe, gapsOf, lanes, runs, ticks } from '../src/swarm/coverage.ts'
import { MOST_PEERS, graphOf, shapeOf } from '../src/swarm/graph.ts'
import { along, frame, lengthOf, settle } from '../src/swarm/layout.ts'
import { sorted } from '../src/swarm/sort.ts'

const peer = (id: string, start: number, end: number, more: Partial<Peer> = {}): Peer =>
  ({ peer: id, start, end, n_blocks: 30, model: 'm', digest: 'd', path: 'direct', rtt_ms: 1, ...more }) as Peer
const named = (peers: Peer[]): string[] => peers.map(({ peer: id }) => id)

test('a strip has the runs of blocks that the gateway tells', () => {
  const model = scene('gap').models[0]
  assert.ok(model)
  assert.deepEqual(runs(model), [
    { start: 0, end: 6, replicas: 2 },
    { start: 6, end: 10, replicas: 1 },
    { start: 10, end: 20, replicas: 0 },
    { start: 20, end: 30, replicas: 1 },
  ])
})

test('a gap is found and said', () => {
  const model = scene('gap').models[0]
  assert.ok(model)
  assert.deepEqual(gapsOf(model), [{ start: 10, end: 20, replicas: 0 }])
  assert.match(describe(model), /blocks 0–5 by 2 peers, blocks 6–9 by 1 peer, blocks 10–19 by nobody and/)
})

test('spans lie in as few rows as they fit into, and no two of a row overlap', () => {
  const { rows, hidden } = lanes([peer('c', 20, 30), peer('a', 0, 10), peer('b', 10, 20), peer('d', 5, 15)], 5)
  assert.deepEqual(rows.map(named), [['a', 'b', 'c'], ['d']])
  assert.equal(hidden, 0)
  assert.equal(lanes(Array.from({ length: 9 }, (_, i) => peer(`${i}`, 0, 30)), 4).hidden, 5)
})

test('the first and the last block are always numbered, others where there is room', () => {
  assert.deepEqual(ticks(30, 5), [0, 10, 20, 29])
  assert.deepEqual(ticks(1, 5), [0])
  for (const n of [2, 7, 80, 126, 5000]) {
    const found = ticks(n, 8)
    assert.deepEqual([found[0], found.at(-1)], [0, n - 1])
    assert.ok(found.length <= 10)
  }
})

test('the graph has the gateway first, each pair of peers once, and no more than one can look at', () => {
  const graph = graphOf(scene('many'))
  assert.equal(graph.ids[0], scene('many').peer)
  const pairs = graph.links.map(({ a, b }) => [a, b].sort().join())
  assert.equal(new Set(pairs).size, pairs.length)
  const crowd = { ...scene('whole'), peers: Array.from({ length: 1000 }, (_, i) => peer(`p${i}`, 0, 1)), links: [] }
  assert.equal(graphOf(crowd).ids.length, MOST_PEERS + 1)
  assert.equal(graphOf(crowd).hidden, 1000 - MOST_PEERS)
})

test('a link to a peer that is not there is not drawn', () => {
  const swarm = scene('whole')
  swarm.links.push({ a: swarm.peer, b: 'ghost', rtt_ms: 1, path: 'direct' })
  assert.ok(!graphOf(swarm).links.some(({ b }) => b === 'ghost'))
})

test('the shape changes with a peer, and not with a round trip that is a little different', () => {
  const swarm = scene('whole')
  const before = shapeOf(graphOf(swarm))
  const jitter = swarm.peers.map((p) => ({ ...p, rtt_ms: (p.rtt_ms ?? 0) * 1.01 }))
  assert.equal(shapeOf(graphOf({ ...swarm, peers: jitter })), before)
  assert.notEqual(shapeOf(graphOf({ ...swarm, peers: swarm.peers.slice(1) })), before)
})

test('peers settle apart from each other, the gateway in the middle, and always in the same way', () => {
  const { ids, ties } = graphOf(scene('many'))
  const places = settle(ids, ties, new Map())
  assert.deepEqual(places, settle(ids, ties, new Map()))
  assert.deepEqual(places.get(ids[0] ?? ''), { x: 0, y: 0 })
  const points = [...places.values()]
  for (const [i, a] of points.entries()) {
    for (const b of points.slice(i + 1)) assert.ok(Math.hypot(a.x - b.x, a.y - b.y) > 50, 'two circles overlap')
  }
})

test('a longer round trip lies further out', () => {
  const ties = [
    { a: 'me', b: 'near', length: lengthOf(1) },
    { a: 'me', b: 'far', length: lengthOf(300) },
  ]
  const places = settle(['me', 'near', 'far'], ties, new Map())
  const out = (id: string): number => Math.hypot(places.get(id)?.x ?? 0, places.get(id)?.y ?? 0)
  assert.ok(out('far') > out('near') + 50)
  assert.ok(lengthOf(1e9) === lengthOf(1e8) && lengthOf(null) > lengthOf(1))
})

test('peers at the very same place come apart', () => {
  const same = new Map([['a', { x: 5, y: 5 }], ['b', { x: 5, y: 5 }]])
  const [, a, b] = [...settle(['me', 'a', 'b'], [], same).values()]
  assert.ok(a && b && Math.hypot(a.x - b.x, a.y - b.y) > 20)
})

test('the frame has every point in it, and the shape of the window', () => {
  const view = frame([{ x: -400, y: 10 }, { x: 90, y: 300 }], 2)
  assert.ok(Math.abs(view.width / view.height - 2) < 1e-9)
  assert.ok(view.x < -400 && view.x + view.width > 90 && view.y + view.height > 300)
})

test('a light goes from stop to stop', () => {
  const stops = [{ x: 0, y: 0 }, { x: 10, y: 0 }, { x: 10, y: 10 }]
  const seen = [0, 0.25, 0.5, 1, 2].map((t) => along(stops, t))
  assert.deepEqual(seen, [stops[0], { x: 5, y: 0 }, stops[1], stops[2], stops[2]])
})

test('the table sorts either way, and what is unknown comes last in both', () => {
  const peers = [peer('a', 0, 1, { rtt_ms: 5 }), peer('b', 0, 1, { rtt_ms: null }), peer('c', 0, 1, { rtt_ms: 1 })]
  assert.deepEqual(named(sorted(peers, 'rtt', false)), ['c', 'a', 'b'])
  assert.deepEqual(named(sorted(peers, 'rtt', true)), ['a', 'c', 'b'])
})

test('who came since then is new', () => {
  assert.deepEqual(named(arrivals(new Set(['a']), [peer('a', 0, 1), peer('b', 0, 1)])), ['b'])
})
