import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [svelte()],
  // Relative, so that the page also works below a reverse proxy's prefix.
  base: './',
  build: {
    // Where the wheel takes it from; hatch_build.py names another folder first and moves it there when it is whole.
    outDir: process.env.SHOAL_PAGE_OUT ?? '../src/shoal/gateway/page/built',
    emptyOutDir: true,
    // Everything with a hash in its name: the gateway lets browsers keep it for ever.
    assetsDir: 'assets',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2023',
  },
  server: { proxy: { '/api': 'http://127.0.0.1:4480', '/v1': 'http://127.0.0.1:4480' } },
})
