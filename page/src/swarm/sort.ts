/** Rows in the order of one column. Pure. */

import type { Peer } from '../api/types.ts'
import { nameOf } from '../ui/names.ts'

export type Column = 'name' | 'model' | 'blocks' | 'path' | 'rtt' | 'step' | 'free' | 'sessions' | 'expires'

/** Numbers go by size, words by the alphabet; what is unknown comes last, whichever way. */
const VALUES: Record<Column, (peer: Peer) => string | number | null> = {
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
  const value = VALUES[column]
  return [...peers].sort((a, b) => {
    const order = compare(value(a), value(b), down)
    return order || a.start - b.start || a.peer.localeCompare(b.peer)
  })
}

function compare(a: string | number | null, b: string | number | null, down: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  const order = typeof a === 'string' ? a.localeCompare(String(b)) : a - Number(b)
  return down ? -order : order
}
