// The browser's side of emostream: send reactions, see what the crowd feels. An ES module without dependencies.
//
//   import { Live, Sender } from '/client.js';
//   const live = new Live({ room: 'main', onWindow: (window) => draw(window.rows) });
//   const sender = new Sender({ room: 'main', onEcho: (emoji) => draw([{ emoji_type: emoji, scaled: 1 }]) });
//   button.onclick = () => sender.send('😀');

/**
 * One closed window, as GET /v1/live sends it.
 * @typedef {object} LiveWindow
 * @property {string} id epoch-sequence; the cursor to resume from
 * @property {string} table the sink
 * @property {string} room
 * @property {{start: string, end: string}} window RFC 3339
 * @property {boolean} final
 * @property {number} pace_ms over how long to play the rows out
 * @property {Array<Object<string, *>>} rows
 * @property {number} [skipped] older windows of this table and room that were left out because this client was behind
 */

/**
 * A stream of closed windows: connects, keeps up with where it is, and connects again where it left off.
 */
export class Live {
  /**
   * @param {object} options
   * @param {string} [options.url] a front or a subscriber; default: where the page is from
   * @param {string|string[]} [options.room] default: 'main'
   * @param {string|string[]} [options.table] default: all
   * @param {string} [options.cluster] the region to connect to first
   * @param {string} [options.after] the cursor to resume from: the id of the last window seen
   * @param {boolean} [options.last] first send the newest closed window; default: true
   * @param {'websocket'|'events'} [options.by] default: 'websocket'
   * @param {(window: LiveWindow) => void} [options.onWindow] each window, once, in order
   * @param {(row: Object<string, *>, window: LiveWindow) => void} [options.onRow] each row, spread over the window's `pace_ms`
   * @param {(after: string|null) => void} [options.onGap] windows may be missing here
   * @param {(state: 'connecting'|'open'|'waiting'|'closed') => void} [options.onState]
   */
  constructor(options = {}) {
    this.options = { last: true, by: 'websocket', ...options };
    this.base = (this.options.url ?? globalThis.location?.origin ?? '').replace(/\/$/, '');
    /** The id of the last window seen. @type {string|null} */
    this.cursor = this.options.after ?? null;
    this.attempts = 0;
    this.closed = false;
    this.timers = new Set();
    this.connect();
  }

  /** Ends the stream for good. */
  close() {
    this.closed = true;
    clearTimeout(this.again);
    for (const timer of this.timers) clearTimeout(timer);
    this.timers.clear();
    this.drop();
    this.options.onState?.('closed');
  }

  /** @private */
  async connect() {
    if (this.closed) return;
    this.options.onState?.('connecting');
    try {
      const address = await this.address();
      if (this.closed) return;
      if (this.options.by === 'events') this.openEvents(address);
      else this.openSocket(address);
    } catch (error) {
      this.reconnect(error.wait);
    }
  }

  /** Where to connect: WebSockets do not follow redirects, so the front is asked. @private */
  async address() {
    const question = new URLSearchParams();
    for (const name of ['room', 'table', 'cluster']) {
      for (const value of [this.options[name] ?? []].flat()) question.append(name, value);
    }
    if (this.cursor) question.set('after', this.cursor);
    else if (this.options.last) question.set('last', '1');
    const answer = await fetch(`${this.base}/v1/live/address?${question}`, { cache: 'no-store' });
    if (answer.ok) return (await answer.json()).connect;
    // A subscriber's own port places nobody: it is the address.
    if (answer.status === 404) return `${this.base}/v1/live?${question}`;
    throw Object.assign(new Error(`no address: ${answer.status}`), { wait: retryAfter(answer) });
  }

  /** @private */
  openSocket(address) {
    const socket = new WebSocket(address.replace(/^http/, 'ws'));
    this.connection = socket;
    socket.onopen = () => this.opened();
    socket.onmessage = ({ data }) => socket === this.connection && this.heard(JSON.parse(data));
    socket.onclose = () => socket === this.connection && this.reconnect();
  }

  /** @private */
  openEvents(address) {
    const events = new EventSource(address);
    this.connection = events;
    const heard = (data) => events === this.connection && this.heard(data);
    events.onopen = () => this.opened();
    events.onmessage = ({ data }) => heard(JSON.parse(data));
    events.addEventListener('gap', ({ data }) => heard({ type: 'gap', ...JSON.parse(data) }));
    events.addEventListener('drain', ({ data }) => heard({ type: 'drain', ...JSON.parse(data) }));
    // The browser would connect to the same subscriber again; the front may know a better one.
    events.onerror = () => events === this.connection && this.reconnect();
  }

  /** @private */
  opened() {
    this.attempts = 0;
    this.options.onState?.('open');
  }

  /** @private */
  heard(message) {
    if (message.type === 'gap') this.options.onGap?.(message.after ?? null);
    else if (message.type === 'drain') this.leaveIn(message.retry);
    else if (message.type === undefined) this.show(message);
  }

  /** The subscriber serves on until then; so nothing is missed. @private */
  leaveIn(milliseconds) {
    clearTimeout(this.again);
    this.leaving = true;
    this.again = setTimeout(() => {
      this.leaving = false;
      this.drop();
      this.connect();
    }, milliseconds);
  }

  /** @private */
  show(window) {
    if (this.cursor && !isAfter(window.id, this.cursor)) return;
    this.cursor = window.id;
    this.options.onWindow?.(window);
    if (!this.options.onRow) return;
    window.rows.forEach((row, place) => {
      const timer = setTimeout(() => {
        this.timers.delete(timer);
        this.options.onRow(row, window);
      }, (window.pace_ms * place) / window.rows.length);
      this.timers.add(timer);
    });
  }

  /**
   * Waits longer each time, at least `wait` milliseconds, and never as long as the others do. Who was told when to leave
   * comes then: the others were told other times.
   * @private
   */
  reconnect(wait = 0) {
    this.drop();
    if (this.closed) return;
    this.options.onState?.('waiting');
    if (this.leaving) return;
    clearTimeout(this.again);
    this.again = setTimeout(() => this.connect(), pause(this.attempts, wait));
    this.attempts += 1;
  }

  /** @private */
  drop() {
    const connection = this.connection;
    this.connection = null;
    connection?.close();
  }
}

/** How long to wait after so many failures, in milliseconds: at least `wait`, and never as long as others do. */
function pause(attempts, wait) {
  const longest = Math.min(30_000, 500 * 2 ** attempts);
  return wait + longest / 2 + (Math.random() * longest) / 2;
}

/** When to try again, in milliseconds from now; 0 when the answer does not say. */
function retryAfter(answer) {
  const seconds = Number(answer.headers.get('retry-after'));
  return seconds > 0 ? Math.min(seconds, 60) * 1000 : 0;
}

/** Whether the first id is newer: epochs rise, and so do sequences within one. */
export function isAfter(id, than) {
  const [epoch, sequence] = parts(id);
  const [thanEpoch, thanSequence] = parts(than);
  return epoch > thanEpoch || (epoch === thanEpoch && sequence > thanSequence);
}

function parts(id) {
  const found = /^e(\d+)-(\d+)$/.exec(id);
  return found ? [BigInt(found[1]), BigInt(found[2])] : [-1n, -1n];
}

/** Rows in one request. */
const MOST_ROWS = 300;
/** How long a body may be that outlives the page: with 3 bytes a character not 16 KiB of the browser's 64. */
const KEEPALIVE_CHARACTERS = 5_000;

/**
 * Sends reactions: at once on the screen, gathered for the network, again when the network fails.
 */
export class Sender {
  /**
   * @param {object} [options]
   * @param {string} [options.url] where ingest is; default: where the page is from
   * @param {string} [options.table] default: 'reactions'
   * @param {string} [options.room] default: the table's own
   * @param {string} [options.user] default: a random one for this page
   * @param {number} [options.everyMs] how long reactions are gathered; default: 250
   * @param {number} [options.most] the most that wait; above it the oldest are left out; default: 1000
   * @param {(emoji: string) => void} [options.onEcho] called at once for each reaction
   * @param {(accepted: number) => void} [options.onAccepted] rows that are in the log
   * @param {(error: {status: number, detail: string, rows: number}) => void} [options.onRefused] rows that never will be
   * @param {(error: {detail: string, waiting: number, leftOut: number}) => void} [options.onError] the server was not
   *   reached, or may not be from this page ([http] origins); the reactions wait and are sent again
   */
  constructor(options = {}) {
    this.options = { table: 'reactions', everyMs: 250, most: 1000, ...options };
    this.base = (this.options.url ?? globalThis.location?.origin ?? '').replace(/\/$/, '');
    this.user = this.options.user ?? `guest-${Math.random().toString(36).slice(2, 12)}`;
    /** @type {Array<Object<string, *>>} */
    this.waiting = [];
    /** Reactions left out because too many waited. */
    this.leftOut = 0;
    this.attempts = 0;
  }

  /**
   * One reaction.
   * @param {string} emoji
   * @param {Object<string, *>} [columns] more columns of the table
   */
  send(emoji, columns = {}) {
    this.options.onEcho?.(emoji);
    const room = this.options.room === undefined ? {} : { room: this.options.room };
    this.waiting.push({ user_id: this.user, emoji_type: emoji, ...room, ...columns });
    this.trim();
    this.timer ??= setTimeout(() => this.flush(), this.options.everyMs);
  }

  /** Sends what waits; called by itself. @returns {Promise<void>} */
  async flush() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const rows = this.waiting.splice(0, MOST_ROWS);
    if (rows.length === 0) return;
    if (this.waiting.length > 0) this.timer = setTimeout(() => this.flush(), this.options.everyMs);
    const body = JSON.stringify(rows);
    let answer;
    try {
      answer = await fetch(`${this.base}/v1/tables/${encodeURIComponent(this.options.table)}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
        // So that the last reactions outlive the page. Browsers refuse more than 64 KiB of that at a time.
        keepalive: body.length < KEEPALIVE_CHARACTERS,
      });
    } catch (error) {
      this.later(rows);
      const { waiting, leftOut } = this;
      this.options.onError?.({ detail: String(error?.message ?? error), waiting: waiting.length, leftOut });
      return;
    }
    const said = await answer.json().catch(() => ({}));
    if (answer.ok) {
      this.attempts = 0;
      this.options.onAccepted?.(said.accepted);
    } else if ((answer.status === 503 && said.outcome !== 'unknown') || answer.status === 429) {
      this.later(rows, retryAfter(answer));
    } else {
      // Refused, or perhaps in the log already: sent again it might count twice.
      this.options.onRefused?.({ status: answer.status, detail: said.detail ?? '', rows: rows.length });
    }
  }

  /** @private */
  later(rows, wait = 0) {
    this.waiting.unshift(...rows);
    this.trim();
    // What was to follow waits as well.
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), pause(this.attempts, wait));
    this.attempts += 1;
  }

  /** Leaves the oldest out when too many wait. @private */
  trim() {
    const tooMany = this.waiting.length - this.options.most;
    if (tooMany <= 0) return;
    this.leftOut += tooMany;
    this.waiting.splice(0, tooMany);
  }
}
