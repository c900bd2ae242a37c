package scheduler

// channelBells: workers sleep in futexes.
const channelBells = false
