import { mount } from 'svelte'
import './app.css'
import App from './App.svelte'
import { live } from './state/live.svelte.ts'

const target = document.getElementById('app')
if (!target) throw new Error('index.html has no #app')
mount(App, { target })
void live.run()
