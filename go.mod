module github.com/musterfleet/muster

go 1.26.0
