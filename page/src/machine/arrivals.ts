/** Who came since then. Pure. */

import type { Peer } from '../api/types.ts'

export function arrivals(before: ReadonlySet<string>, now: Peer[]): Peer[] {
  return now.filter(({ peer }) => !before.has(peer))
}
