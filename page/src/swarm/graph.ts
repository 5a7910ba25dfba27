/** What the graph shows of a swarm: bounded, with every peer tied to something. Pure. */

import type { Link, Path, Peer, Swarm } from '../api/types.ts'
import { lengthOf, type Tie } from './layout.ts'

/** More than this many circles tell nothing; the table below has them all. */
export const MOST_PEERS = 120
const MOST_LINKS = 400

export interface Graph {
  /** The gateway first. */
  ids: string[]
  peers: Map<string, Peer>
  links: Link[]
  ties: Tie[]
  /** Peers that are left out. */
  hidden: number
}

export function graphOf(swarm: Swarm): Graph {
  const near = [...swarm.peers].sort((a, b) => rank(a) - rank(b) || a.peer.localeCompare(b.peer))
  const peers = new Map(near.slice(0, MOST_PEERS).map((peer) => [peer.peer, peer]))
  const ids = [swarm.peer, ...[...peers.keys()].filter((id) => id !== swarm.peer).sort()]
  const links = linksOf(swarm, peers).slice(0, MOST_LINKS)
  const ties = links.map(({ a, b, rtt_ms }) => ({ a, b, length: lengthOf(rtt_ms) }))
  return { ids, peers, links, ties, hidden: Math.max(0, near.length - MOST_PEERS) }
}

/** Changes when the layout should, and not with every round trip measured anew. */
export function shapeOf(graph: Graph): string {
  const ties = graph.ties.map(({ a, b, length }) => `${a}-${b}:${Math.round(length / 25)}`)
  return [...graph.ids, ...ties].join(' ')
}

/** The gateway's own, what it measured to each peer, and what it knows of others; each pair once. */
function linksOf(swarm: Swarm, peers: Map<string, Peer>): Link[] {
  const found = new Map<string, Link>()
  const add = (link: Link): void => {
    const known = (id: string): boolean => id === swarm.peer || peers.has(id)
    const pair = [link.a, link.b].sort().join(' ')
    if (link.a !== link.b && known(link.a) && known(link.b) && !found.has(pair)) found.set(pair, link)
  }
  for (const { peer, rtt_ms, path } of peers.values()) add({ a: swarm.peer, b: peer, rtt_ms, path })
  for (const link of swarm.links) add(link)
  return [...found.values()]
}

function rank(peer: Peer): number {
  if (peer.me) return -2
  return peer.rtt_ms ?? 1e9
}

const WORDS: Record<Path, string> = {
  direct: 'direct',
  relayed: 'relayed',
  none: 'no path yet',
}

export function pathText(path: Path): string {
  return WORDS[path] ?? path
}

/** The graph in one sentence, for those who do not see it. */
export function describe(graph: Graph, swarm: Swarm): string {
  const others = [...graph.peers.values()].filter((peer) => peer.peer !== swarm.peer)
  const direct = others.filter((peer) => peer.path === 'direct').length
  const relayed = others.filter((peer) => peer.path === 'relayed').length
  return (
    `The gateway and ${others.length} other peers: ${direct} reached directly, ${relayed} through a relay, ` +
    `${others.length - direct - relayed} not reached yet. The table below has the same in words.`
  )
}
