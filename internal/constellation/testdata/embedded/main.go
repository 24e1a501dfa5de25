// Command embedded prints the key of the constellation that it finds.
package main

import (
	"fmt"
	"os"

	"github.com/musterfleet/muster/internal/constellation"
)

func main() {
	c, err := constellation.Find("", os.Getenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(c.Key, len(c.Operators))
}
