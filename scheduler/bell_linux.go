package scheduler

const noFutexes = false
