/** Light or dark: the system's choice until a person makes another. */

const STORED = 'shoal.theme'

export type Theme = 'system' | 'light' | 'dark'

class ThemeChoice {
  value = $state<Theme>(read())

  constructor() {
    this.#show()
  }

  next(): void {
    this.value = this.value === 'system' ? 'light' : this.value === 'light' ? 'dark' : 'system'
    localStorage.setItem(STORED, this.value)
    this.#show()
  }

  #show(): void {
    document.documentElement.dataset.theme = this.value
  }
}

function read(): Theme {
  const stored = localStorage.getItem(STORED)
  return stored === 'light' || stored === 'dark' ? stored : 'system'
}

export const theme = new ThemeChoice()
