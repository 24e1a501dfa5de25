//go:build !unix

package config

import "os"

// lock does nothing: there is no lock that ends with the process.
func lock(*os.File) error { return nil }

// noFollow is nothing here.
const noFollow = 0

// keepOwner does nothing: who owns files is not asked there.
func keepOwner(*os.File, string) error { return nil }
