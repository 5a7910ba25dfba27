/** How the time of one decode step splits over the hops. Pure. */

import type { Request } from '../api/types.ts'

export type Kind = 'compute' | 'network' | 'waiting'

export interface Part {
  hop: number
  kind: Kind
  ms: number
  /** Of the whole step, 0 to 1. */
  share: number
}

/** The step's parts in the order in which a token meets them; those that took no time are left out. */
export function parts(request: Request): Part[] {
  const found = request.hops.flatMap(({ network_ms, waiting_ms, compute_ms }, hop) => [
    { hop, kind: 'network' as const, ms: network_ms },
    { hop, kind: 'waiting' as const, ms: waiting_ms },
    { hop, kind: 'compute' as const, ms: compute_ms },
  ])
  const taken = found.filter(({ ms }) => ms > 0)
  const whole = taken.reduce((sum, { ms }) => sum + ms, 0)
  return taken.map((part) => ({ ...part, share: part.ms / whole }))
}

export function total(request: Request): number {
  return parts(request).reduce((sum, { ms }) => sum + ms, 0)
}

/** Where most of a step goes. */
export function bound(request: Request): Kind | null {
  const sums: Record<Kind, number> = { compute: 0, network: 0, waiting: 0 }
  for (const { kind, ms } of parts(request)) sums[kind] += ms
  const kinds = Object.keys(sums) as Kind[]
  const most = kinds.reduce((a, b) => (sums[b] > sums[a] ? b : a))
  return sums[most] > 0 ? most : null
}
