//go:build !unix

package app

import "os"

// ParentVariable names, to a child process, the descriptor of a pipe that ends
// when its parent does, however that ends. It has no effect on this system.
const ParentVariable = "MUSTER_PARENT_FD"

func parentPipe() (*os.File, error) { return nil, nil }
