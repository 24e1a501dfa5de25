package delivery

import "fmt"

// shortages tell operators in time that room is nearly gone.
type shortages struct{ commands, withdrawals, ids gauge }

// A gauge does not go up and down at each command near its limit.
type gauge bool

// read sets the gauge at a level and clears it at a tenth of the limit below.
func (g *gauge) read(n, limit, level int) bool {
	switch {
	case n >= level:
		*g = true
	case n < level-limit/10:
		*g = false
	}
	return bool(*g)
}

// most is the part of a limit from which operators are told.
func most(limit int) int { return limit - limit/5 }

// Shortages returns what the Inbox has little room left for, a sentence each
// for people. They stay the same while that lasts.
func (b *Inbox) Shortages() []string {
	var all []string
	if b.few.commands.read(len(b.commands), b.cfg.Capacity, b.cfg.Capacity) {
		all = append(all, fmt.Sprintf("it holds %d commands, and takes no more until some are over and their reports stored", b.cfg.Capacity))
	}
	if b.few.withdrawals.read(b.cancels, b.cfg.Withdrawals, most(b.cfg.Withdrawals)) {
		all = append(all, fmt.Sprintf("it holds more than %d cancels of commands that have not come; at %d it takes no commands",
			most(b.cfg.Withdrawals)-b.cfg.Withdrawals/10, b.cfg.Withdrawals))
	}
	if b.few.ids.read(b.memory.n, b.cfg.Memory, most(b.cfg.Memory)) {
		all = append(all, fmt.Sprintf("it remembers more than %d commands; from %d on it forgets the oldest of the busiest caller, whose commands are unknown if they come that late",
			most(b.cfg.Memory)-b.cfg.Memory/10, b.cfg.Memory))
	}
	return all
}
