/** Peers in the order of one column. Pure. */

import type { Peer } from '../api/types.ts'
import { nameOf } from '../ui/names.ts'
import { ordered, type Value } from '../ui/order.ts'

export type Column = 'name' | 'model' | 'blocks' | 'path' | 'rtt' | 'step' | 'free' | 'sessions' | 'expires'

const VALUES: Record<Column, (peer: Peer) => Value> = {
  name: (peer) => nameOf(peer.peer).fish,
  model: (peer) => peer.model,
  blocks: (peer) => (peer.model === null ? null : peer.start),
  path: (peer) => (peer.path === 'none' ? null : peer.path),
  rtt: (peer) => peer.rtt_ms,
  step: (peer) => peer.step_ms,
  free: (peer) => (peer.model === null ? null : peer.tokens_free),
  sessions: (peer) => (peer.model === null ? null : peer.sessions),
  expires: (peer) => peer.expires_in_s,
}

export function sorted(peers: Peer[], column: Column, down: boolean): Peer[] {
  return ordered(peers, VALUES[column], down)
}
