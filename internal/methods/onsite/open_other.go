//go:build !unix

package onsite

// There is nothing like them here.
const noWait, noFollow = 0, 0
