/** Which blocks of a model are served, and by whom. Pure. */

import type { Model, Peer } from '../api/types.ts'
import { blocks, list, many } from '../ui/format.ts'

export interface Run {
  start: number
  end: number
  /** Peers that serve each of these blocks. */
  replicas: number
}

/** Neighbouring blocks with as many peers, together. */
export function runs(model: Model): Run[] {
  return model.runs.map(([start, end, replicas]) => ({ start, end, replicas }))
}

/** Spans of peers in as few rows as they fit into without overlap; more than `most` rows are cut. */
export function lanes(peers: Peer[], most: number): { rows: Peer[][]; hidden: number } {
  const ordered = [...peers].sort((a, b) => a.start - b.start || b.end - a.end || a.peer.localeCompare(b.peer))
  const rows: Peer[][] = []
  let hidden = 0
  for (const peer of ordered) {
    const row = rows.find((placed) => (placed.at(-1)?.end ?? 0) <= peer.start)
    if (row) row.push(peer)
    else if (rows.length < most) rows.push([peer])
    else hidden++
  }
  return { rows, hidden }
}

/** Block numbers under the strip: the first, the last, and round ones between that have room. */
export function ticks(nBlocks: number, most: number): number[] {
  const last = nBlocks - 1
  if (last <= 0) return [0]
  const step = [1, 2, 4, 5, 10, 20, 25, 50, 100, 200].find((s) => last / s <= most) ?? Math.ceil(last / most)
  const found = [0]
  for (let at = step; at <= last - step * 0.6; at += step) found.push(at)
  return [...found, last]
}

export function gapsOf(model: Model): Run[] {
  return runs(model).filter((run) => run.replicas === 0)
}

/** The strip in words. */
export function describe(model: Model): string {
  const said = runs(model).map(({ start, end, replicas }) => {
    const which = end - start === 1 ? 'block' : 'blocks'
    return `${which} ${blocks(start, end)} by ${replicas ? many(replicas, 'peer') : 'nobody'}`
  })
  return `${model.id}: ${list(said)}`
}
