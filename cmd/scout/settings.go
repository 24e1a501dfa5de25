package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/participant"
)

const help = `Scout makes this machine one that the operators of its constellation can find
and operate without any broker. It needs the constellation's file, made once
with 'muster order keygen', and runs until it gets SIGTERM.

  scout --constellation lab.json
  scout --constellation lab.json --interface eth1 --label role=web
  scout --constellation lab.json --peer 10.0.0.7:6776      # no multicast there
  scout --constellation lab.json --allow status,facts,logs # look, but touch nothing
  MUSTER_CONSTELLATION=lab.json scout
  scout                                # with a constellation built into it

An operator then sees the machine with 'muster order neighbours'.

  --constellation FILE   default $MUSTER_CONSTELLATION (a path, or its JSON),
                         else the one that was built in
  --interface NAME       where to multicast; can be repeated
                         (default: each that is up, but for loopback)
  --peer HOST:PORT       keep a connection to this agent; can be repeated
  --port N               of UDP and TCP (default 6776)
  --listen IP            listen there alone, without multicast
  --no-multicast         find others through --peer only
  --name NAME            default: the host's name
  --label KEY=VALUE      for selectors; can be repeated
  --allow LIST           methods that operators may use, of: status, facts, logs,
                         service, broker, script, get, put (default: all)
  --state DIR            keeps the id, and the log of what operators did
                         (default /var/lib/muster/scout for root)
  --lock-dir DIR         keeps the lock, on a RAM disk (default /run/muster)
  --version, --help
`

// settings are what the arguments say.
type settings struct {
	constellation, name, state, lock, listen string
	interfaces, peers, allow                 []string
	labels                                   map[string]string
	port                                     int
	unicast, help, version                   bool
}

func parse(args []string) (settings, error) {
	s := settings{port: lan.DefaultPort, labels: map[string]string{}}
	for len(args) > 0 {
		rest, err := s.take(args)
		if err != nil {
			return s, err
		}
		args = rest
	}
	return s, s.complete()
}

// take reads one flag and its value.
func (s *settings) take(args []string) ([]string, error) {
	name, value, given := strings.Cut(args[0], "=")
	args = args[1:]
	on := map[string]*bool{"--help": &s.help, "-h": &s.help, "--version": &s.version, "--no-multicast": &s.unicast}[name]
	if on != nil && !given {
		*on = true
		return args, nil
	}
	set := s.flag(name)
	switch {
	case set == nil:
		return nil, muster.Errorf(muster.Invalid, "unknown argument %q", name).WithHint("see scout --help")
	case !given && len(args) == 0:
		return nil, muster.Errorf(muster.Invalid, "%s needs a value", name)
	case !given:
		value, args = args[0], args[1:]
	}
	return args, set(value)
}

// flag returns what a flag with a value does.
func (s *settings) flag(name string) func(string) error {
	text := func(to *string) func(string) error { return func(v string) error { *to = v; return nil } }
	list := func(to *[]string) func(string) error {
		return func(v string) error { *to = append(*to, v); return nil }
	}
	switch name {
	case "--constellation":
		return text(&s.constellation)
	case "--name":
		return text(&s.name)
	case "--state":
		return text(&s.state)
	case "--lock-dir":
		return text(&s.lock)
	case "--listen":
		return text(&s.listen)
	case "--interface":
		return list(&s.interfaces)
	case "--peer":
		return list(&s.peers)
	case "--port":
		return s.setPort
	case "--label":
		return s.setLabel
	case "--allow":
		return func(v string) (err error) { s.allow, err = onsite.ParseAllow(v); return err }
	}
	return nil
}

func (s *settings) setPort(v string) error {
	port, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return muster.Errorf(muster.Invalid, "--port %q is no port", v)
	}
	s.port = int(port)
	return nil
}

func (s *settings) setLabel(v string) error {
	key, value, ok := strings.Cut(v, "=")
	if !ok || key == "" {
		return muster.Errorf(muster.Invalid, "--label %q: want KEY=VALUE", v)
	}
	s.labels[key] = value
	return nil
}

// complete fills in what was not given.
func (s *settings) complete() error {
	if s.name == "" {
		name, err := os.Hostname()
		if err != nil {
			return muster.Errorf(muster.Unavailable, "find the host's name: %w", err).WithHint("give one with --name")
		}
		s.name = name
	}
	if err := muster.NodeName(s.name).Validate(); err != nil {
		return err
	}
	if s.state == "" {
		s.state = stateFolder()
	}
	if s.lock == "" {
		s.lock = participant.LockFolder(os.Getenv)
	}
	return nil
}

func stateFolder() string {
	home := os.Getenv("XDG_STATE_HOME")
	switch {
	case os.Geteuid() == 0:
		return "/var/lib/muster/scout"
	case filepath.IsAbs(home):
		return filepath.Join(home, "muster", "scout")
	}
	return filepath.Join(os.Getenv("HOME"), ".local/state/muster/scout")
}
