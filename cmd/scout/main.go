// Scout is the small agent of an Order: it makes a machine one that operators of
// its constellation can find and operate without any broker.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

const tidyEvery = 20 * time.Second

// Exit codes, those of muster.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// An agent that waits is to be small: it collects garbage sooner than a
	// program does that has work to do, and has one thread at a time, since a
	// frame takes less time than waking another thread does.
	debug.SetGCPercent(10)
	runtime.GOMAXPROCS(1)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	s, err := parse(args)
	switch {
	case err != nil:
		complain(err)
		return exitUsage
	case s.help:
		_, err = os.Stdout.WriteString(help)
	case s.version:
		_, err = os.Stdout.WriteString("scout " + version() + "\n")
	default:
		err = serve(ctx, s)
	}
	if err != nil {
		complain(err)
		return exitFailed
	}
	return exitOK
}

func complain(err error) {
	text := "scout: " + err.Error() + "\n"
	if e, ok := errors.AsType[*muster.Error](err); ok && e.Hint != "" {
		text += "hint: " + e.Hint + "\n"
	}
	_, _ = os.Stderr.WriteString(text) // there is nowhere else to say it
}

// serve is the agent, until the context ends.
func serve(ctx context.Context, s settings) error {
	c, err := constellation.Find(s.constellation, os.Getenv)
	if err != nil {
		return err
	}
	box, err := seal.New(c.Key, c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return err
	}
	id, err := participant.StableID(s.state, c.Key, "scout", s.name)
	if err != nil {
		return err
	}
	journal, err := participant.OpenJournal(s.state)
	if err != nil {
		return err
	}
	network, err := participant.OpenLAN(lan.Options{Box: box, Host: s.listen, Port: s.port, Interfaces: s.interfaces, Unicast: s.unicast, Peers: s.peers})
	if err != nil {
		return errors.Join(err, journal.Close())
	}
	l := &logger{}
	network.PassOn()
	agent, err := participant.NewAgent(participant.AgentOptions{
		Cluster: c.Key, Operators: c.Operators, ID: id, Name: s.name, Labels: s.labels,
		Hints: [][]byte{c.Hint}, HintFile: filepath.Join(s.state, participant.HintFile),
		Carriers: []participant.Carrier{network}, Port: uint16(network.Port()), LockFolder: s.lock, Journal: journal,
		Host: onsite.Host{Allow: s.allow, BrokerFile: brokerFile()}, Program: "scout " + version(), Log: l.print,
	})
	if err != nil {
		network.Close()
		return errors.Join(err, journal.Close())
	}
	l.print("scout " + version() + ": " + s.name + " (" + order.NodeID(id[:8]).String() + ") of constellation " + c.Key + " at " + net.JoinHostPort(s.listen, strconv.Itoa(network.Port())))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tidying sync.WaitGroup
	tidying.Go(func() { giveBack(ctx) })
	err = agent.Run(ctx)
	cancel()
	tidying.Wait()
	l.print("scout ends")
	return errors.Join(err, journal.Close())
}

// giveBack returns memory to the system that is not in use, from time to time.
// The runtime would keep it for work that seldom comes here.
func giveBack(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		debug.FreeOSMemory()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// brokerFile is where muster's agent looks for other addresses of its broker,
// if this machine has such an agent.
func brokerFile() string {
	const folder = "/var/lib/muster/agent"
	if _, err := os.Stat(folder); err != nil {
		return ""
	}
	return filepath.Join(folder, onsite.BrokerFile)
}

// A logger writes lines to stderr.
type logger struct{ mu sync.Mutex }

func (l *logger) print(message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := time.Now().Format("2006-01-02T15:04:05.000Z07:00 ") + strings.ReplaceAll(message, "\n", " ") + "\n"
	_, _ = os.Stderr.WriteString(line) // there is nowhere else to say it
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
