/** Rows in the order of one column. Pure. */

export type Value = string | number | null

interface Served {
  peer: string
  start: number
}

/** Numbers go by size, words by the alphabet; what is unknown comes last, whichever way. Of equals, by their blocks. */
export function ordered<T extends Served>(rows: readonly T[], value: (row: T) => Value, down: boolean): T[] {
  return [...rows].sort((a, b) => {
    const order = compare(value(a), value(b), down)
    return order || a.start - b.start || a.peer.localeCompare(b.peer)
  })
}

function compare(a: Value, b: Value, down: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  const order = typeof a === 'string' ? a.localeCompare(String(b)) : a - Number(b)
  return down ? -order : order
}
