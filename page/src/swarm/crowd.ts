/** Very many peers: found by words, in groups, and each at a place of its own on a round map. Pure. */

import type { Peer } from '../api/types.ts'
import { list, many } from '../ui/format.ts'
import { fullName } from '../ui/names.ts'
import { pathText } from './graph.ts'
import type { Point } from './layout.ts'

/** From so many peers on, circles with names and lines hide each other. */
export const CROWD = 60
/** Groups beyond these are one: of the smallest. */
const MOST_GROUPS = 10
const OTHERS = 'others'

export type Grouping = 'distance' | 'version' | 'model' | 'path' | 'device'

export const GROUPINGS: readonly { id: Grouping; title: string }[] = [
  { id: 'distance', title: 'Round trip' },
  { id: 'version', title: 'Version' },
  { id: 'model', title: 'Model' },
  { id: 'path', title: 'Path' },
  { id: 'device', title: 'Device' },
]

export interface Group {
  name: string
  peers: Peer[]
}

/** Where a peer lies, and in which group. */
export interface Spot extends Point {
  peer: Peer
  group: number
}

/** The largest round trip of each band, in milliseconds: one network, one country, one continent. */
const BANDS: readonly [number, string][] = [
  [5, 'under 5 ms'],
  [30, '5–30 ms'],
  [100, '30–100 ms'],
  [Infinity, 'over 100 ms'],
]
const UNMEASURED = 'not measured'

const NAMES: Record<Grouping, (peer: Peer) => string> = {
  distance: ({ me, rtt_ms }) => (me ? BANDS[0]![1] : rtt_ms === null ? UNMEASURED : BANDS.find(([most]) => rtt_ms < most)![1]),
  version: ({ agent }) => agent || 'not said',
  model: ({ model, format }) => (model === null ? 'no model' : format ? `${model} ${format}` : model),
  path: ({ me, path }) => (me ? 'this one' : pathText(path)),
  device: ({ device }) => device || 'not said',
}

/** Round trips from near to far, all others from the largest group to the smallest. */
export function groupsOf(peers: Peer[], by: Grouping): Group[] {
  const found = new Map<string, Peer[]>()
  for (const peer of peers) {
    const name = NAMES[by](peer)
    const group = found.get(name)
    if (group) group.push(peer)
    else found.set(name, [peer])
  }
  const groups = [...found].map(([name, peers]) => ({ name, peers }))
  if (by === 'distance') {
    const order = [...BANDS.map(([, name]) => name), UNMEASURED]
    return groups.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name))
  }
  groups.sort((a, b) => b.peers.length - a.peers.length || (a.name < b.name ? -1 : 1))
  if (groups.length <= MOST_GROUPS) return groups
  const rest = groups.splice(MOST_GROUPS - 1)
  return [...groups, { name: OTHERS, peers: rest.flatMap(({ peers }) => peers) }]
}

/** Those of which each word is found in a name, an id, a version, a model, a format, a path or a device. */
export function matching(peers: Peer[], words: string): Peer[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean)
  if (wanted.length === 0) return peers
  return peers.filter((peer) => {
    const said = [fullName(peer.peer), peer.peer, peer.agent, peer.model, peer.format, pathText(peer.path), peer.device]
    const text = said.join(' ').toLowerCase()
    return wanted.every((word) => text.includes(word))
  })
}

/** Room in the middle for the gateway, and between two neighbours, in steps from ring to ring. */
const HOLE = 2.4
const GAP = 0.9
/** Of the circle that even a group of one has. */
const LEAST_SHARE = 0.035

export interface Layout {
  spots: Spot[]
  /** Of each group: the middle of its sector, in radians. */
  angles: number[]
  /** Of the outermost ring. */
  radius: number
}

/**
 * A sector for each group, with rings around (0, 0), one unit apart: in each sector those with the shortest round
 * trips are innermost, and no two peers touch.
 */
export function layout(groups: Group[]): Layout {
  const all = groups.reduce((sum, { peers }) => sum + peers.length, 0)
  const shares = groups.map(({ peers }) => Math.max(LEAST_SHARE, peers.length / Math.max(1, all)))
  const sum = shares.reduce((a, b) => a + b, 0)
  const spots: Spot[] = []
  const angles: number[] = []
  let begin = -Math.PI / 2
  let radius = HOLE
  for (const [group, { peers }] of groups.entries()) {
    const angle = (2 * Math.PI * (shares[group] ?? 0)) / sum
    angles.push(begin + angle / 2)
    const near = [...peers].sort((a, b) => far(a) - far(b) || (a.peer < b.peer ? -1 : 1))
    let ring = HOLE
    for (let at = 0; at < near.length; ring++) {
      const gap = groups.length > 1 ? GAP / ring : 0
      const fits = Math.max(1, Math.floor(Math.max(0, angle - gap) * ring))
      const here = near.slice(at, at + fits)
      at += here.length
      for (const [i, peer] of here.entries()) {
        const turn = begin + gap / 2 + ((angle - gap) * (i + 0.5)) / Math.max(fits, 1)
        spots.push({ peer, group, x: ring * Math.cos(turn), y: ring * Math.sin(turn) })
      }
      radius = Math.max(radius, ring)
    }
    begin += angle
  }
  return { spots, angles, radius }
}

/** In steps of a factor, so that peers do not change places with each round trip that is measured anew. */
function far({ me, rtt_ms }: Peer): number {
  if (me) return -1
  return rtt_ms === null ? Number.MAX_VALUE : Math.round(2 * Math.log2(1 + Math.max(0, rtt_ms)))
}

/** The spot at a point, or the nearest within `reach`. */
export function spotAt(spots: Spot[], point: Point, reach: number): Spot | null {
  let best: Spot | null = null
  let least = reach
  for (const spot of spots) {
    const away = Math.hypot(spot.x - point.x, spot.y - point.y)
    if (away <= least) [best, least] = [spot, away]
  }
  return best
}

/** The map in words, for those who do not see it. */
export function describeCrowd(groups: Group[], by: Grouping): string {
  const title = GROUPINGS.find(({ id }) => id === by)?.title.toLowerCase() ?? by
  const all = groups.reduce((sum, { peers }) => sum + peers.length, 0)
  const said = groups.map(({ name, peers }) => `${name}: ${many(peers.length, 'peer')}`)
  return `${many(all, 'peer')} by ${title}: ${list(said)}. The table below has the same in words.`
}
