// Command app is the program that selftest.sh runs on hosts: it serves HTTP at
// its argument, or :8080, and says where it runs.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	address := ":8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "host=%s greeting=%s\n", host, os.Getenv("GREETING"))
	})
	log.Fatal(http.ListenAndServe(address, nil))
}
