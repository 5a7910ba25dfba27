import assert from 'node:assert/strict'
import { test } from 'node:test'
import { scene } from '../dev/scenes.ts'
import type { Peer } from '../src/api/types.ts'
import { describeCrowd, groupsOf, layout, matching, spotAt } from '../src/swarm/crowd.ts'
import { fullName } from '../src/ui/names.ts'

const peers = scene('crowd').peers
const peer = (id: string, more: Partial<Peer> = {}): Peer => ({ ...(peers[1] as Peer), peer: id, ...more })
const sizes = (found: { name: string; peers: Peer[] }[]): [string, number][] => found.map(({ name, peers }) => [name, peers.length])

test('every peer is in one group, whatever they are grouped by', () => {
  for (const by of ['distance', 'version', 'model', 'path', 'device'] as const) {
    const ids = groupsOf(peers, by).flatMap(({ peers }) => peers.map(({ peer }) => peer))
    assert.equal(new Set(ids).size, 300)
    assert.equal(ids.length, 300)
  }
})

test('versions go from the one of most peers to the one of fewest', () => {
  assert.deepEqual(sizes(groupsOf(peers, 'version')), [['shoal/0.3.0', 180], ['shoal/0.2.0', 60], ['shoal/0.2.1', 60]])
})

test('round trips go from near to far, and those that nobody measured come last', () => {
  const some = [peer('a', { rtt_ms: null }), peer('b', { rtt_ms: 250 }), peer('c', { rtt_ms: 5 }), peer('d', { rtt_ms: 4.9 })]
  assert.deepEqual(sizes(groupsOf(some, 'distance')), [['under 5 ms', 1], ['5–30 ms', 1], ['over 100 ms', 1], ['not measured', 1]])
})

test('very many groups are ten, the last of which has all that are left', () => {
  const some = Array.from({ length: 40 }, (_, i) => peer(`p${i}`, { agent: `v${i % 25}` }))
  const groups = groupsOf(some, 'version')
  assert.deepEqual([groups.length, groups[9]?.name], [10, 'others'])
  assert.equal(groups.reduce((sum, { peers }) => sum + peers.length, 0), 40)
})

test('each word that is searched for must be said by the peer', () => {
  assert.equal(matching(peers, ' ').length, 300)
  assert.deepEqual(sizes(groupsOf(matching(peers, '0.2.1 A100'), 'device')), [['NVIDIA A100', 10]])
  const one = peers[7] as Peer
  assert.deepEqual(matching(peers, fullName(one.peer).toUpperCase()), [one])
  assert.deepEqual(matching(peers, 'nobody-has-this'), [])
})

test('no two peers of the map touch, and nearer ones of a group lie further in', () => {
  for (const by of ['distance', 'version', 'device'] as const) {
    const { spots, radius } = layout(groupsOf(peers, by))
    assert.equal(spots.length, 300)
    for (const [i, a] of spots.entries()) {
      assert.ok(Math.hypot(a.x, a.y) <= radius + 1e-9)
      for (const b of spots.slice(i + 1)) assert.ok(Math.hypot(a.x - b.x, a.y - b.y) > 0.72, `${by}: two dots touch`)
    }
    const first = spots.filter(({ group, peer }) => group === 0 && peer.rtt_ms !== null)
    const [near, far] = [first[0], first.at(-1)]
    assert.ok(near && far && Math.hypot(near.x, near.y) < Math.hypot(far.x, far.y))
  }
})

test('a round trip that is a little different moves nobody', () => {
  const jitter = peers.map((p) => ({ ...p, rtt_ms: p.rtt_ms === null ? null : p.rtt_ms * (1 + 1e-6) }))
  const place = (all: Peer[]) => layout(groupsOf(all, 'version')).spots.map(({ peer, x, y }) => [peer.peer, x, y])
  assert.deepEqual(place(jitter), place(peers))
})

test('nobody, one peer and a group of one have a place', () => {
  assert.deepEqual(layout([]).spots, [])
  assert.equal(layout(groupsOf([peer('a')], 'path')).spots.length, 1)
  const groups = groupsOf([...peers, peer('odd', { agent: 'other' })], 'version')
  assert.equal(layout(groups).spots.filter(({ peer }) => peer.agent === 'other').length, 1)
})

test('what lies under a pointer is the nearest spot in reach', () => {
  const { spots } = layout(groupsOf(peers, 'version'))
  const spot = spots[40]
  assert.ok(spot)
  assert.equal(spotAt(spots, { x: spot.x + 0.1, y: spot.y }, 0.7), spot)
  assert.equal(spotAt(spots, { x: 1e3, y: 0 }, 0.7), null)
})

test('the map is said in words', () => {
  assert.match(describeCrowd(groupsOf(peers, 'version'), 'version'), /^300 peers by version: shoal\/0\.3\.0: 180 peers, /)
})
