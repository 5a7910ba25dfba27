/** Names and colours for peers, whose ids are too long to tell apart. The command line has the same names. */

const FISH = [
  'Alewife', 'Anchovy', 'Barbel', 'Bass', 'Beluga', 'Bichir', 'Bleak', 'Blenny',
  'Bonito', 'Bream', 'Brill', 'Burbot', 'Capelin', 'Char', 'Chub', 'Cisco',
  'Clownfish', 'Cobia', 'Coley', 'Croaker', 'Dab', 'Dace', 'Dorado', 'Flounder',
  'Garfish', 'Garpike', 'Goby', 'Gourami', 'Grayling', 'Grouper', 'Gudgeon', 'Guppy',
  'Gurnard', 'Halibut', 'Herring', 'Ide', 'Ling', 'Loach', 'Mackerel', 'Minnow',
  'Mullet', 'Opah', 'Perch', 'Pilchard', 'Plaice', 'Pollack', 'Pompano', 'Rasbora',
  'Roach', 'Ruffe', 'Saithe', 'Sardine', 'Saury', 'Shad', 'Smelt', 'Snapper',
  'Sprat', 'Tench', 'Tetra', 'Trout', 'Turbot', 'Whiting', 'Wrasse', 'Zander',
] as const

/** Colours that `app.css` has for peers: `--fish-0` and on. */
export const N_COLOURS = 8

/** The same fish for the same peer, on every machine. The end of the id tells it from its namesakes. */
export function nameOf(peer: string): { fish: string; tail: string } {
  return { fish: FISH[hash(peer) % FISH.length] ?? FISH[0], tail: peer.slice(-4) }
}

export function fullName(peer: string): string {
  const { fish, tail } = nameOf(peer)
  return `${fish}-${tail}`
}

/** 32-bit FNV-1a. */
function hash(text: string): number {
  let value = 0x811c9dc5
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193)
  return (value ^ (value >>> 15)) >>> 0 // the low bits alone are poorly mixed
}

/** Gives peers colours in the order in which they are first seen, so that neighbours in a route differ. */
export class Colours {
  #given = new Map<string, number>()

  of(peer: string): string {
    let index = this.#given.get(peer)
    if (index === undefined) {
      index = this.#given.size % N_COLOURS
      this.#given.set(peer, index)
    }
    return `var(--fish-${index})`
  }
}

export const colours = new Colours()
