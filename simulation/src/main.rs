//! temporary
fn main() {
    let args: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let print = args.len() == 1;
    let (first, count) = (args[0], args.get(1).copied().unwrap_or(1));
    let mut sim = 0; let mut took = 0; let mut ops = 0;
    for seed in first..first + count {
        let plan = simulation::plan(seed, None);
        let o = simulation::run(&plan, print);
        sim += o.figures.simulated_us; took += o.figures.took_us; ops += o.figures.done;
        println!("{seed} {} {:x} events {} sim {:.1}s took {}ms ops {}/{} {:?}", plan.scenario, o.figures.hash, o.figures.events, o.figures.simulated_us as f64/1e6, o.figures.took_us/1000, o.figures.done, o.figures.operations, o.violation);
    }
    println!("speed {:.1}, ops {ops}", sim as f64 / took as f64);
}
