/** Which view is open: the address after the `#`, so that the browser's own back button works. */

export const VIEWS = ['chat', 'swarm', 'market', 'requests', 'add', 'connect', 'health'] as const
export type View = (typeof VIEWS)[number]

export const TITLES: Record<View, string> = {
  chat: 'Chat',
  swarm: 'Swarm',
  market: 'Market',
  requests: 'Requests',
  add: 'Add a machine',
  connect: 'Connect an app',
  health: 'Health',
}

class Current {
  view = $state<View>(read())

  constructor() {
    addEventListener('hashchange', () => (this.view = read()))
  }
}

function read(): View {
  const named = location.hash.replace(/^#\/?/, '')
  return VIEWS.find((view) => view === named) ?? 'chat'
}

export const current = new Current()
