/** Which model the next question goes to. Pure. */

import type { Model } from '../api/types.ts'

/** The wanted one if the swarm has it, else one that is whole, else any. */
export function choose(models: Model[], wanted: string): Model | null {
  const whole = models.find(({ missing }) => missing.length === 0)
  return models.find(({ id }) => id === wanted) ?? whole ?? models[0] ?? null
}
